package command

import "strings"

// Output keeps the begin of what is written to it and swallows the rest, so that a chatty program neither blocks nor costs memory.
type Output struct {
	Max  int    // bytes that are kept
	Full func() // called when there is more, unless it is nil

	kept []byte
	cut  bool
}

// Write never fails.
func (o *Output) Write(p []byte) (int, error) {
	keep := min(len(p), o.Max-len(o.kept))
	o.kept = append(o.kept, p[:keep]...)
	if keep < len(p) && !o.cut {
		o.cut = true
		if o.Full != nil {
			o.Full()
		}
	}
	return len(p), nil
}

// Bytes are what is kept.
func (o *Output) Bytes() []byte { return o.kept }

// Cut says whether there was more.
func (o *Output) Cut() bool { return o.cut }

// Excerpt is the begin of the output as text for an error or a log, of at most limit bytes. It ends with ... if there was more.
func (o *Output) Excerpt(limit int) string {
	text, cut := strings.TrimSpace(strings.ToValidUTF8(string(o.kept), "?")), o.cut
	if len(text) > limit {
		text, cut = strings.ToValidUTF8(text[:limit], ""), true
	}
	if cut {
		text += "..."
	}
	return text
}
