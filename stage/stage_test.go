package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errBroken = errors.New("plugin bridge: exit status 1")

// pass lets d of the bubble's time pass, and everything in it come to rest.
func pass(d time.Duration) { <-time.After(d); synctest.Wait() }

func TestRun(t *testing.T) {
	for _, test := range []struct {
		name  string
		bound time.Duration
		fn    func(context.Context) error
		want  string // "" is success
		is    error
	}{
		{name: "success", fn: func(context.Context) error { return nil }},
		{name: "names stage and time", fn: func(context.Context) error { pass(4200 * time.Millisecond); return errBroken },
			want: "stage network: plugin bridge: exit status 1 after 4.2 s", is: errBroken},
		{name: "short times in milliseconds", fn: func(context.Context) error { pass(12500 * time.Microsecond); return errBroken },
			want: "stage network: plugin bridge: exit status 1 after 12.5 ms", is: errBroken},
		{name: "bound", bound: time.Minute, fn: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			want: "stage network: context deadline exceeded after 60.0 s", is: context.DeadlineExceeded},
		{name: "the inner stage speaks", fn: func(ctx context.Context) error {
			return Run(ctx, "add", 0, func(context.Context) error { pass(time.Second); return errBroken })
		}, want: "stage network/add: plugin bridge: exit status 1 after 1.0 s", is: errBroken},
		{name: "panic", fn: func(context.Context) error { panic("oh") }, want: "stage network: panic: oh after 0.0 ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				err := Run(t.Context(), "network", test.bound, test.fn)
				if got := errText(err); got != test.want {
					t.Errorf("got error %q, want %q", got, test.want)
				}
				if test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("error %v does not wrap %v", err, test.is)
				}
			})
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// journal is the object that the steps of the tests work on.
type journal struct {
	lines []string
	fail  map[string]error
}

func (j *journal) act(what string) error {
	j.lines = append(j.lines, what)
	return j.fail[what]
}

func step(name string) Step[*journal] {
	return Step[*journal]{Name: name,
		Do:   func(j *journal, _ context.Context) error { return j.act("do " + name) },
		Undo: func(j *journal, ctx context.Context) error { return errors.Join(ctx.Err(), j.act("undo "+name)) }}
}

func TestSteps(t *testing.T) {
	busy := errors.New("busy")
	for _, test := range []struct {
		name string
		fail map[string]error
		want []string
		err  []string // what the error must say
	}{
		{name: "all done", want: []string{"do a", "do b", "do c"}},
		{name: "failing step and those before it are undone in reverse", fail: map[string]error{"do b": errBroken},
			want: []string{"do a", "do b", "undo b", "undo a"}, err: []string{"stage b: plugin bridge"}},
		{name: "undo goes on past failures and tells them", fail: map[string]error{"do c": errBroken, "undo b": busy, "undo a": busy},
			want: []string{"do a", "do b", "do c", "undo c", "undo b", "undo a"},
			err:  []string{"stage c: plugin bridge", "stage undo b: busy", "stage undo a: busy"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := &journal{fail: test.fail}
			err := Steps[*journal]{step("a"), step("b"), step("c")}.Do(t.Context(), j)
			if !slices.Equal(j.lines, test.want) {
				t.Errorf("got %q, want %q", j.lines, test.want)
			}
			if (err != nil) != (len(test.err) > 0) {
				t.Fatalf("got error %v", err)
			}
			for _, want := range test.err {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestStepsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	j := &journal{}
	last := Step[*journal]{Name: "last", Do: func(j *journal, _ context.Context) error { return j.act("do last") }}
	ends := Step[*journal]{Name: "ends", Do: func(*journal, context.Context) error { cancel(); return nil }}
	err := Steps[*journal]{step("a"), ends, last}.Do(ctx, j)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stage last") {
		t.Errorf("got error %v, want one of stage last about the cancelled context", err)
	}
	// The undo of a says so if its own context has ended.
	if want := []string{"do a", "undo a"}; !slices.Equal(j.lines, want) || strings.Contains(err.Error(), "undoing") {
		t.Errorf("got %q and error %v, want %q", j.lines, err, want)
	}
}

func TestRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorder(3)
		for i := range 5 {
			ctx, op := r.Start(t.Context(), "run", fmt.Sprintf("pod%d", i))
			err := Run(ctx, "network", 0, func(ctx context.Context) error {
				return Run(ctx, "add", 0, func(context.Context) error { pass(time.Second); return errBroken })
			})
			op.End(err)
		}
		_, read := r.Start(t.Context(), "list", "")
		read.End(nil)
		ctx, op := r.Start(t.Context(), "run", "pod5")
		err := Run(ctx, "mount", 0, func(context.Context) error {
			pass(2 * time.Second)
			if got, want := op.Where(), "in stage mount for 2.0 s"; got != want {
				t.Errorf("Where: got %q, want %q", got, want)
			}
			var subjects []string
			for _, rec := range r.Records() {
				subjects = append(subjects, rec.Subject)
			}
			if want := []string{"pod2", "pod3", "pod4", "pod5"}; !slices.Equal(subjects, want) {
				t.Errorf("got records of %q, want %q: the last three, without the read, and the one that runs", subjects, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		op.End(nil)
		var out bytes.Buffer
		if err := r.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		var records []Record
		if err := json.Unmarshal(out.Bytes(), &records); err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		last := records[len(records)-2]
		if len(last.Stages) != 2 || last.Stages[1].Name != "network/add" || last.Stages[1].Took != time.Second || last.Stages[1].Error == "" {
			t.Errorf("got stages %+v", last.Stages)
		}
	})
}

func TestRecordIsBounded(t *testing.T) {
	r := NewRecorder(1)
	ctx, op := r.Start(t.Context(), "run", "pod")
	for range maxStages + 5 {
		if err := Run(ctx, "again", 0, func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	op.End(nil)
	if rec := r.Records()[0]; len(rec.Stages) != maxStages || rec.Dropped != 5 {
		t.Errorf("got %d stages and %d dropped, want %d and 5", len(rec.Stages), rec.Dropped, maxStages)
	}
}
