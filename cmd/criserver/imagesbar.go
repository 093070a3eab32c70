package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/control"
)

const (
	barWidth    = 30 // characters
	shortestBar = 8
	linePause   = 5 * time.Second // between two lines where there is no terminal
)

// bar shows progress: a bar on a terminal, elsewhere a line now and then, of a pull when layers have come.
type bar struct {
	w        io.Writer
	what     string
	terminal bool
	began    time.Time // when the first bytes were told; zero before
	base     int64     // which these were
	last     time.Time // of a line
	ended    int       // layers that lines have told
	shown    bool
}

func newBar(w io.Writer, what string) *bar {
	return &bar{w: w, what: what, terminal: isTerminal(w), last: time.Now()}
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (b *bar) show(p control.Progress) {
	now := time.Now()
	if b.began.IsZero() && p.Total > 0 {
		b.began, b.base = now, p.Done
	}
	text := b.what + ": " + b.amount(p, now.Sub(b.began))
	if p.Stage != "" && b.terminal {
		text += ", waits for " + waits(p.Stage)
	}
	switch {
	case p.Total <= 0 && (!b.terminal || p.Stage == ""):
	case b.terminal:
		b.shown = true
		fmt.Fprint(b.w, "\r\x1b[K"+withBar(text, p, columns(b.w)))
	case p.Layers > 0 && p.Ended > b.ended:
		b.ended = p.Ended
		fmt.Fprintf(b.w, "%s, %d of %d layers\n", text, p.Ended, p.Layers)
	case p.Layers == 0 && now.Sub(b.last) >= linePause:
		b.last = now
		fmt.Fprintln(b.w, text)
	}
}

// withBar draws the bar behind the text, as long as the terminal's line has room for it. What is longer is cut.
func withBar(text string, p control.Progress, columns int) string {
	width := min(barWidth, columns-len(text)-len(" []")-1) // a full line would move to the next
	if p.Total <= 0 || width < shortestBar {
		return text[:min(len(text), columns-1)]
	}
	full := int(min(p.Done, p.Total) * int64(width) / p.Total)
	return fmt.Sprintf("%s [%s%s]", text, strings.Repeat("=", full), strings.Repeat(" ", width-full))
}

// columns is how wide the terminal is.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 1 {
			return int(size.Col)
		}
	}
	return 80
}

// waits says what a pull waits for in a stage.
func waits(stage string) string {
	words, known := map[string]string{"resolve": "the registry", "config": "the registry", "verify": "verification", "queue": "its turn", "retry": "another attempt",
		"network": "the network", "inflate": "decompression", "hash": "digests", "write": "unpacking", "record": "the database"}[stage]
	if !known {
		return stage
	}
	return words
}

func (b *bar) amount(p control.Progress, took time.Duration) string {
	if p.Total <= 0 {
		return "begins"
	}
	if b.what == "verify" { // counts images
		return fmt.Sprintf("%d of %d images", p.Done, p.Total)
	}
	text := fmt.Sprintf("%3d%% %s of %s", p.Done*100/p.Total, human(p.Done), human(p.Total))
	if took >= time.Second {
		text += fmt.Sprintf(", %s/s", human(int64(float64(p.Done-b.base)/took.Seconds())))
	}
	return text
}

// end leaves the line to what comes next.
func (b *bar) end(done bool) {
	switch {
	case !b.shown:
	case done:
		fmt.Fprint(b.w, "\r\x1b[K")
	default:
		fmt.Fprintln(b.w)
	}
}

// human writes a number of bytes as people read it.
func human(bytes int64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/(1<<10), "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
