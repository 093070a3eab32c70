package ociruntime

import (
	"context"
	"testing"
	"time"
)

// A start whose context ends may have got as far as a process. Then that either runs, and Start says so, or is gone.
func TestAbandonedStart(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	began := time.Now()
	first, _ := f.create(t, p, DefaultSpec("sleep", "1000"), nil)
	if err := first.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	takes := time.Since(began)
	abandoned := 0
	for i := range 40 {
		c, _ := f.create(t, p, DefaultSpec("sleep", "1000"), nil)
		ctx, cancel := context.WithTimeout(t.Context(), takes*time.Duration(i)/40)
		err := c.Start(ctx)
		cancel()
		if err == nil {
			continue
		}
		abandoned++
		if empty, emptyErr := c.group.Empty(); !empty || emptyErr != nil {
			t.Fatalf("a process is left after %v", err)
		}
		if err := c.Delete(testContext(t)); err != nil {
			t.Fatalf("cannot be deleted after %v: %v", err, err)
		}
	}
	t.Logf("%d starts of %s were abandoned", abandoned, takes)
}
