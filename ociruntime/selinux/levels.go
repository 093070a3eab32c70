package selinux

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
)

// Levels gives out levels of two categories, each to one owner. It is safe for concurrent use.
type Levels struct {
	categories int // c0 up to, and without, this one

	mu     sync.Mutex
	owners map[string]int // of levels that were asked for, there may be several
}

// NewLevels gives out pairs of that many categories, at least two.
func NewLevels(categories int) *Levels {
	return &Levels{categories: categories, owners: map[string]int{}}
}

// errNoLevel says that there are more pods than pairs of categories.
var errNoLevel = errors.New("every pair of SELinux categories is taken")

// Take returns a level that nobody has. It is the caller's until Release.
func (l *Levels) Take() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pairs := l.categories * (l.categories - 1) / 2
	first := rand.IntN(pairs)
	for i := range pairs {
		level := l.pair((first + i) % pairs)
		if l.owners[level] == 0 {
			l.owners[level] = 1
			return level, nil
		}
	}
	return "", errNoLevel
}

// pair is the level of the n-th pair of different categories, the smaller one first as the kernel writes them.
func (l *Levels) pair(n int) string {
	low := 0
	for rest := l.categories - 1; n >= rest; rest-- {
		n -= rest
		low++
	}
	return fmt.Sprintf("%s:c%d,c%d", baseLevel, low, low+1+n)
}

// Hold makes the caller an owner of a level that it knows of.
func (l *Levels) Hold(level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owners[level]++
}

// Release ends the ownership of one owner.
func (l *Levels) Release(level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owners[level]--; l.owners[level] <= 0 {
		delete(l.owners, level)
	}
}
