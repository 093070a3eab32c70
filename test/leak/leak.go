package leak

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Kind is a sort of thing that can leak.
type Kind string

// The kinds. Process, Descriptor and Goroutine are compared for what is new only: that some of an earlier test end
// meanwhile is as it should be. All others must neither appear nor disappear.
const (
	Process    Kind = "process"
	Mount      Kind = "mount"
	NetNS      Kind = "network namespace"
	Cgroup     Kind = "cgroup"
	Link       Kind = "link"
	Address    Kind = "address"
	Route      Kind = "route"
	Rule       Kind = "packet filter rule"
	File       Kind = "file"
	Descriptor Kind = "descriptor"
	Goroutine  Kind = "goroutine"
)

// Kinds are all kinds, in the order of reports.
var Kinds = []Kind{Process, Mount, NetNS, Cgroup, Link, Address, Route, Rule, File, Descriptor, Goroutine}

func (k Kind) onlyNew() bool { return k == Process || k == Descriptor || k == Goroutine }

// shared kinds are those in which others on the machine leave traces too.
func (k Kind) shared() bool { return k != File && k != Descriptor && k != Goroutine }

// State is what there is of each kind, as sorted lines. A kind that was not asked for is absent.
type State map[Kind][]string

// Difference is one thing more or less.
type Difference struct {
	Kind Kind
	Line string
	Gone bool // it was there before
}

func (d Difference) String() string {
	if d.Gone {
		return fmt.Sprintf("%s is gone: %s", d.Kind, d.Line)
	}
	return fmt.Sprintf("%s is left: %s", d.Kind, d.Line)
}

// Diff compares the kinds that both states have. Lines count: two equal mounts on one path are one more than one.
func Diff(before, after State) []Difference {
	var all []Difference
	for _, kind := range Kinds {
		was, ok := before[kind]
		is, too := after[kind]
		if !ok || !too {
			continue
		}
		for _, line := range Surplus(is, was) {
			all = append(all, Difference{Kind: kind, Line: line})
		}
		if kind.onlyNew() {
			continue
		}
		for _, line := range Surplus(was, is) {
			all = append(all, Difference{Kind: kind, Line: line, Gone: true})
		}
	}
	return all
}

// Surplus returns the lines of now that are not in before, each as often as now has more of them.
func Surplus(now, before []string) []string {
	count := map[string]int{}
	for _, line := range before {
		count[line]++
	}
	var more []string
	for _, line := range now {
		if count[line]--; count[line] < 0 {
			more = append(more, line)
		}
	}
	return more
}

type config struct {
	kinds  []Kind
	dirs   []string
	names  []string
	match  *regexp.Regexp
	ignore []*regexp.Regexp
	wait   time.Duration
}

// Option changes what is looked at.
type Option func(*config)

// Only restricts the check to kinds.
func Only(kinds ...Kind) Option { return func(c *config) { c.kinds = kinds } }

// Without leaves kinds out.
func Without(kinds ...Kind) Option {
	return func(c *config) {
		c.kinds = slices.DeleteFunc(slices.Clone(c.kinds), func(k Kind) bool { return slices.Contains(kinds, k) })
	}
}

// Files adds directories whose contents are compared, by path and type. They need not exist.
func Files(dirs ...string) Option { return func(c *config) { c.dirs = append(c.dirs, dirs...) } }

// Processes adds names of programs that are looked for on the whole machine, besides "criserver" and "pause" and
// besides the descendants of the test process. AnyProgram is for who has a pid namespace alone.
func Processes(names ...string) Option {
	return func(c *config) { c.names = append(c.names, names...) }
}

// AnyProgram stands for every name in Processes.
const AnyProgram = "*"

// Match restricts the kinds that everybody on the machine shares (all but files, descriptors and goroutines) to lines
// that match the regular expression. Descendants of the test process are looked at all the same.
func Match(expr string) Option { return func(c *config) { c.match = regexp.MustCompile(expr) } }

// Ignore leaves out lines that match the regular expression.
func Ignore(expr string) Option {
	return func(c *config) { c.ignore = append(c.ignore, regexp.MustCompile(expr)) }
}

// PortmapResidue is for Ignore: the tables and chains that CNI's portmap and bridge plugins make once a machine and
// keep, and the rules that only lead into them. Rules of a pod are not among them.
const PortmapResidue = `^table (ip|ip6|inet) cni_(hostport|plugins_masquerade)( chain \w+)?` +
	`(: (comment .*|type nat hook .*|fib daddr type local jump hostports_all|jump (hostip_)?hostports|` +
	`ip6? daddr \S+ return|goto masq_checks))?$` +
	`|(jump|-j|chain) CNI-HOSTPORT-(DNAT|MASQ|SETMARK)( policy -)?$` +
	`|CNI-HOSTPORT-(MASQ|SETMARK)(:| -)`

// Footings is for Ignore: of the mount points that containers of one kind share some are kept for the next one (store/layer, which
// bounds them).
const Footings = `/layers/footings/[0-9a-f]+[/ ]`

// Within sets how long what ends may take to be gone, instead of ten seconds.
func Within(d time.Duration) Option { return func(c *config) { c.wait = d } }

// looksFor says whether p is wanted by one of its names.
func (c *config) looksFor(p proc) bool {
	return slices.Contains(c.names, AnyProgram) || slices.ContainsFunc(p.names, func(name string) bool { return slices.Contains(c.names, name) })
}

func configure(opts []Option) *config {
	c := &config{kinds: Kinds, names: []string{"criserver", "pause"}, wait: 10 * time.Second}
	for _, o := range opts {
		o(c)
	}
	return c
}

// Snapshot looks at the system now.
func Snapshot(opts ...Option) (State, error) { return configure(opts).look() }

var looks = map[Kind]func(*config) ([]string, error){
	Process: processes, Mount: mounts, NetNS: netNamespaces, Cgroup: cgroups, Link: links, Address: addresses,
	Route: routes, Rule: rules, File: files, Descriptor: descriptors, Goroutine: goroutines,
}

func (c *config) look() (State, error) {
	state := State{}
	for _, kind := range c.kinds {
		lines, err := looks[kind](c)
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", kind, err)
		}
		lines = slices.DeleteFunc(lines, func(line string) bool { return !c.wanted(kind, line) })
		slices.Sort(lines)
		if lines == nil {
			lines = []string{} // in JSON: looked, found none
		}
		state[kind] = lines
	}
	return state, nil
}

func (c *config) wanted(kind Kind, line string) bool {
	if c.match != nil && kind.shared() && !c.match.MatchString(line) && !strings.HasPrefix(line, ownChild) {
		return false
	}
	return !slices.ContainsFunc(c.ignore, func(re *regexp.Regexp) bool { return re.MatchString(line) })
}

// Check remembers the system now and, when the test has ended and cleaned up, reports everything that is different as
// errors of the test. Call it first.
func Check(t testing.TB, opts ...Option) {
	t.Helper()
	c := configure(opts)
	warmUp()
	before, err := c.look()
	if err != nil {
		t.Fatalf("leak check: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		left, err := c.settle(before)
		if err != nil {
			t.Errorf("leak check: %v", err)
		}
		for _, d := range left {
			t.Errorf("leak: %s", d)
		}
	})
}

// Settle waits until nothing differs from before, at most as long as Within says, and returns what still does.
func Settle(before State, opts ...Option) ([]Difference, error) {
	return configure(opts).settle(before)
}

// settle looks again and again, less and less often, and only at the kinds that still differ.
func (c *config) settle(before State) ([]Difference, error) {
	deadline := time.Now().Add(c.wait)
	again := *c
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		now, err := again.look()
		if err != nil {
			return nil, err
		}
		left := Diff(before, now)
		if len(left) == 0 {
			return nil, nil
		}
		if time.Now().After(deadline) {
			return left, nil
		}
		again.kinds = nil
		for _, d := range left {
			if !slices.Contains(again.kinds, d.Kind) {
				again.kinds = append(again.kinds, d.Kind)
			}
		}
		time.Sleep(pause)
	}
}

// warmUp has Go's runtime open what it keeps for the life of the process: the poller's descriptors.
func warmUp() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	_ = r.Close()
	_ = w.Close()
}
