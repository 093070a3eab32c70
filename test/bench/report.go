package main

import (
	"fmt"
	"strings"
	"time"
)

// noTarget marks a ratio that is told without being asked for.
const noTarget = 0

// ratio is a figure of ours beside another one, mostly those that DESIGN.md or an issue sets a target for.
type ratio struct {
	figure       string
	ours, theirs string
	value        float64 // ours / theirs
	target       float64
}

func (b *bench) ratio(figure, ours, theirs string, value, target float64) {
	b.ratios = append(b.ratios, ratio{figure, ours, theirs, value, target})
}

// compare adds the ratio of two medians; one that was not measured adds nothing.
func (b *bench) compare(figure string, ours, theirs *series, target float64) {
	if ours == nil || theirs == nil {
		return
	}
	o, t := ours.percentile(0.5), theirs.percentile(0.5)
	b.ratio(figure, ms(o)+" ms", ms(t)+" ms", float64(o)/float64(t), target)
}

// compareDaemons adds the ratio of ours to the better peer's, by the medians of one lap; without a peer it adds nothing.
func (b *bench) compareDaemons(figure string, r results, lap string, target float64) {
	b.compareWith(ours, figure, r, lap, target)
}

// compareWith does that for another criserver, which is named where it is not the usual one.
func (b *bench) compareWith(name, figure string, r results, lap string, target float64) {
	own, best := r.find(name, lap), (*series)(nil)
	for _, p := range b.peerDaemons() {
		if s := r.find(p.name, lap); s != nil && (best == nil || s.percentile(0.5) < best.percentile(0.5)) {
			best = s
		}
	}
	if own == nil || best == nil {
		return
	}
	o, t := own.percentile(0.5), best.percentile(0.5)
	b.ratio("CRI: "+figure+qualified(name), ms(o)+" ms", ms(t)+" ms, "+best.contender, float64(o)/float64(t), target)
}

// qualified says which criserver a figure is of.
func qualified(name string) string {
	if name == ours {
		return ""
	}
	return ", " + name
}

// compareRates adds the ratio of the better peer's rate to that of name, which is a criserver: the target is how much less time
// it may take.
func (b *bench) compareRates(name, figure, unit string, rates map[string]float64, target float64) {
	best := ""
	for _, p := range b.peerDaemons() {
		if rates[p.name] > rates[best] {
			best = p.name
		}
	}
	if best == "" || rates[name] == 0 {
		return
	}
	b.ratio("CRI: "+figure+qualified(name), fmt.Sprintf("%.3g %s", rates[name], unit), fmt.Sprintf("%.3g %s, %s", rates[best], unit, best), rates[best]/rates[name], target)
}

func (b *bench) printRatios() {
	if len(b.ratios) == 0 {
		return
	}
	heading("What it must reach")
	t := table{header: []string{"figure (p50)", "ours", "better peer", "ratio", "target", ""}}
	for _, r := range b.ratios {
		target, verdict := "<= "+fraction(r.target), "reached"
		switch {
		case r.target == noTarget:
			target, verdict = "", ""
		case r.value > r.target:
			verdict = fmt.Sprintf("missed by %.2fx", r.value/r.target)
		}
		t.add(r.figure, r.ours, r.theirs, fraction(r.value), target, verdict)
	}
	t.print()
}

// fraction writes 0.1 as 1/10, and what is more than a half as it is.
func fraction(v float64) string {
	if v >= 0.51 || v <= 0 {
		return fmt.Sprintf("%.2f", v)
	}
	return "1/" + strings.TrimSuffix(fmt.Sprintf("%.1f", 1/v), ".0")
}

// ms writes a time in milliseconds.
func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func heading(text string) { fmt.Printf("\n## %s\n\n", text) }

// table is printed as markdown, with columns as wide as they must be.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print() {
	width := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)), 3)
		}
	}
	line := func(row []string) {
		for i, cell := range row {
			fmt.Printf("| %s%s ", cell, strings.Repeat(" ", width[i]-len([]rune(cell))))
		}
		fmt.Println("|")
	}
	line(t.header)
	for i := range t.header {
		fmt.Printf("|%s", strings.Repeat("-", width[i]+2))
	}
	fmt.Println("|")
	for _, row := range t.rows {
		line(row)
	}
}

// printTimes prints the series of a loop beside the same of lone rounds. lone may be nil.
func printTimes(loop, lone results) {
	t := table{header: []string{"", "", "back to back p10", "p50", "p99", "every 100 ms p10", "p50", "p99", "rounds"}}
	for _, s := range loop {
		row := append([]string{s.contender, s.lap}, s.tenthMiddleTail()...)
		if l := lone.find(s.contender, s.lap); l != nil {
			row = append(append(row, l.tenthMiddleTail()...), fmt.Sprintf("%d + %d", len(s.times), len(l.times)))
		} else {
			row = append(row, "", "", "", fmt.Sprint(len(s.times)))
		}
		t.add(row...)
	}
	t.print()
}

// tenthMiddleTail is p10, which other work of the machine disturbs least, p50 and p99.
func (s *series) tenthMiddleTail() []string {
	return []string{ms(s.percentile(0.1)), ms(s.percentile(0.5)), ms(s.percentile(0.99))}
}
