package crash

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"
)

// State is one that a crash after a step may leave.
type State struct {
	Step      *Step
	At        int    // number of the step
	Kind      string // "killed" or what the power loss did
	PowerLoss bool

	tree *tree
}

func (s *State) String() string { return fmt.Sprintf("%s after step %d, %s", s.Kind, s.At, s.Step.Op) }

// Write makes an empty directory hold what the crash left.
func (s *State) Write(dir string) error { return s.tree.write(dir) }

const block = 4096 // what a disk writes whole, in bytes

// States gives the states of all steps, without those that were given already for the same marks.
func States(steps []Step) []State {
	var all []State
	given := map[[sha256.Size]byte]bool{}
	for at := range steps {
		c := crashed{steps: steps[:at+1], now: &steps[at], rng: rand.New(rand.NewPCG(uint64(at), 0))}
		for _, s := range c.states() {
			s.Step, s.At = &steps[at], at
			key := s.tree.digest(s.PowerLoss, s.Step.Marks)
			if !given[key] {
				given[key] = true
				all = append(all, s)
			}
		}
	}
	return all
}

// crashed is a moment in which the machine stops.
type crashed struct {
	steps []Step // up to now
	now   *Step
	rng   *rand.Rand
}

// names says which names a directory has, contents what a file has that was not synced like that; safe is nil if it never was.
type (
	names    func(id int) map[string]int
	contents func(live, safe *node) string
)

func (c *crashed) states() []State {
	power := func(kind string, n names, data contents) State {
		return State{Kind: kind, PowerLoss: true, tree: c.compose(n, data)}
	}
	before := c.steps[c.now.named+c.rng.IntN(len(c.steps)-c.now.named)].live
	live, safe := namesOf(c.now.live), namesOf(c.now.safe)
	return []State{
		{Kind: "killed", tree: c.now.live},
		power("written", live, written),
		power("unsynced", safe, unwritten),
		power("contents", safe, written),
		power("names", live, unwritten),
		power("zeros", live, zeros),
		power("torn", live, c.torn),
		power("ordered", namesOf(before), c.torn),
	}
}

func namesOf(t *tree) names {
	return func(id int) map[string]int {
		if n := t.nodes[id]; n != nil {
			return n.names
		}
		return nil // the directory was never synced
	}
}

func written(live, _ *node) string { return live.data }

func unwritten(_, safe *node) string {
	if safe == nil {
		return ""
	}
	return safe.data
}

// zeros is a file that has its new size already, and where it grew nothing yet.
func zeros(live, safe *node) string {
	data := make([]byte, len(live.data))
	copy(data, unwritten(live, safe))
	return string(data)
}

// torn takes any of the above, or some blocks of the old and some of the new.
func (c *crashed) torn(live, safe *node) string {
	old := unwritten(live, safe)
	switch c.rng.IntN(5) {
	case 0:
		return live.data
	case 1:
		return old
	case 2:
		return zeros(live, safe)
	}
	size := len(live.data)
	if c.rng.IntN(2) == 0 {
		size = max(len(old), len(live.data)/2)
	}
	mixed := make([]byte, size)
	copy(mixed, old)
	for at := 0; at < min(size, len(live.data)); at += block {
		if c.rng.IntN(2) == 0 {
			copy(mixed[at:min(at+block, size)], live.data[at:])
		}
	}
	return string(mixed)
}

// compose makes a tree of names and contents.
func (c *crashed) compose(n names, data contents) *tree {
	t := &tree{map[int]*node{}}
	c.add(t, 0, n, data)
	return t
}

func (c *crashed) add(t *tree, id int, n names, data contents) {
	if t.nodes[id] != nil {
		return
	}
	one, safe := *c.latest(id), c.now.safe.nodes[id]
	t.nodes[id] = &one
	switch {
	case one.kind() == unix.S_IFDIR:
		one.names = n(id)
		for _, child := range one.names {
			c.add(t, child, n, data)
		}
	case one.kind() == unix.S_IFREG && (safe == nil || safe.data != one.data):
		one.data = data(&one, safe)
	}
}

// latest is the node as it was when it was last seen.
func (c *crashed) latest(id int) *node {
	for i := len(c.steps) - 1; ; i-- {
		if n := c.steps[i].live.nodes[id]; n != nil {
			return n
		}
	}
}

// digest tells states apart.
func (t *tree) digest(power bool, marks []string) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintln(h, power, marks)
	t.hash(0, h)
	return [sha256.Size]byte(h.Sum(nil))
}

func (t *tree) hash(id int, h io.Writer) {
	n := t.nodes[id]
	fmt.Fprintf(h, "%o %d %d %d %v %d ", n.mode, n.uid, n.gid, n.rdev, n.xattrs, len(n.data))
	_, _ = io.WriteString(h, n.data) // a hash takes everything
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		fmt.Fprintf(h, "%q ", name)
		t.hash(n.names[name], h)
	}
	fmt.Fprint(h, "}")
}
