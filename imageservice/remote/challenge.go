package remote

import (
	"net/http"
	"strings"
)

// challenge is one of a WWW-Authenticate header (RFC 9110, 11.6.1).
type challenge struct {
	scheme string // in lower case
	params map[string]string
	twice  bool // a parameter is there twice: ambiguous
}

// challenges parses as much of the headers as is well-formed.
func challenges(h http.Header) (all []challenge) {
	for _, value := range h.Values("WWW-Authenticate") {
		all = append(all, parseChallenges(value)...)
	}
	return all
}

// parseChallenges tells a parameter from the next scheme by the sign behind the word.
func parseChallenges(text string) (all []challenge) {
	p := headerText(text)
	for {
		p.skip(" \t,")
		word := strings.ToLower(p.word())
		if word == "" {
			return all
		}
		p.skip(" \t")
		if !p.take('=') {
			all = append(all, challenge{scheme: word, params: map[string]string{}})
			continue
		}
		p.skip(" \t")
		value := p.value()
		p.skip("=") // of base64, which is no parameter's value but that of a scheme that is not ours
		if len(all) == 0 {
			return nil
		}
		c := &all[len(all)-1]
		if _, c.twice = c.params[word]; !c.twice {
			c.params[word] = value
		} else {
			return all
		}
	}
}

// headerText is what is left of a header's value.
type headerText string

func (t *headerText) skip(set string) { *t = headerText(strings.TrimLeft(string(*t), set)) }

func (t *headerText) take(b byte) bool {
	if *t == "" || (*t)[0] != b {
		return false
	}
	*t = (*t)[1:]
	return true
}

// word takes the characters of a token, perhaps none.
func (t *headerText) word() string {
	n := 0
	for n < len(*t) && isTokenByte((*t)[n]) {
		n++
	}
	word := string((*t)[:n])
	*t = (*t)[n:]
	return word
}

func isTokenByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~/:", b) >= 0
}

// value takes a token or what is between quotes. Slash and colon are taken for a token's, as some registries leave the quotes out.
func (t *headerText) value() string {
	if !t.take('"') {
		return t.word()
	}
	var b strings.Builder
	for i := 0; i < len(*t); i++ {
		switch c := (*t)[i]; {
		case c == '"':
			*t = (*t)[i+1:]
			return b.String()
		case c == '\\' && i+1 < len(*t):
			i++
			b.WriteByte((*t)[i])
		default:
			b.WriteByte(c)
		}
	}
	*t = "" // the closing quote is missing
	return b.String()
}

// choose returns the challenge that is answered: bearer before basic, since a token is worth less to a thief.
func choose(all []challenge) (c challenge, found bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range all {
			if c.scheme == scheme && !c.twice {
				return c, true
			}
		}
	}
	return challenge{}, false
}
