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
	barWidth  = 30              // characters
	linePause = 5 * time.Second // between two lines where there is no terminal
)

// bar shows progress: a bar on a terminal, elsewhere a line now and then.
type bar struct {
	w        io.Writer
	what     string
	terminal bool
	began    time.Time
	last     time.Time // of a line
	shown    bool
}

func newBar(w io.Writer, what string) *bar {
	return &bar{w: w, what: what, terminal: isTerminal(w), began: time.Now(), last: time.Now()}
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
	if p.Total <= 0 || !b.terminal && now.Sub(b.last) < linePause {
		return
	}
	b.last = now
	text := fmt.Sprintf("%s: %s", b.what, b.amount(p, now.Sub(b.began)))
	if !b.terminal {
		fmt.Fprintln(b.w, text)
		return
	}
	b.shown = true
	full := int(min(p.Done, p.Total) * barWidth / p.Total)
	fmt.Fprintf(b.w, "\r\x1b[K%s [%s%s]", text, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full))
}

func (b *bar) amount(p control.Progress, took time.Duration) string {
	if b.what == "verify" { // counts images
		return fmt.Sprintf("%d of %d images", p.Done, p.Total)
	}
	text := fmt.Sprintf("%3d%% %s of %s", p.Done*100/p.Total, human(p.Done), human(p.Total))
	if took >= time.Second {
		text += fmt.Sprintf(", %s/s", human(int64(float64(p.Done)/took.Seconds())))
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
