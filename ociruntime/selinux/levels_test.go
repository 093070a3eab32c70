package selinux

import (
	"errors"
	"regexp"
	"testing"
)

func TestLevels(t *testing.T) {
	l := NewLevels(5)
	l.Hold("s0:c1,c3")
	l.Hold("s0:c1,c3")
	shape := regexp.MustCompile(`^s0:c([0-4]),c([0-4])$`)
	taken := map[string]bool{"s0:c1,c3": true}
	for range 9 {
		level, err := l.Take()
		parts := shape.FindStringSubmatch(level)
		if err != nil || parts == nil || parts[1] >= parts[2] || taken[level] {
			t.Fatalf("got %q, %v after %v", level, err, taken)
		}
		taken[level] = true
	}
	if _, err := l.Take(); !errors.Is(err, errNoLevel) {
		t.Errorf("all are taken: %v", err)
	}
	l.Release("s0:c1,c3")
	if _, err := l.Take(); !errors.Is(err, errNoLevel) {
		t.Errorf("the other owner has it still: %v", err)
	}
	l.Release("s0:c1,c3")
	l.Release("s0:c1,c3") // once too often
	if level, err := l.Take(); level != "s0:c1,c3" || err != nil {
		t.Errorf("got %q, %v", level, err)
	}
}
