package volume

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeadFileSystemCostsOneThread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		alive := make(chan struct{})
		look := func(string, bool) (bool, error) {
			calls.Add(1)
			<-alive
			return false, nil
		}
		s := Sources{look: look}
		for range 3 {
			began := time.Now()
			_, err := s.Make(t.Context(), "/dead")
			want(t, "says why", err != nil && strings.Contains(err.Error(), "its file system has not answered"), true)
			want(t, "gave up after", time.Since(began), sourceBound)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Make(ctx, "/dead")
		want(t, "gives up with its caller", errors.Is(err, context.DeadlineExceeded), true)
		want(t, "asked", int(calls.Load()), 1)
		close(alive)
		_, err = s.Make(t.Context(), "/dead")
		must(t, err)
		synctest.Wait()
		_, err = s.Make(t.Context(), "/dead")
		must(t, err)
		want(t, "asked again", calls.Load() >= 2, true)
	})
}

func TestMakeSource(t *testing.T) {
	dir := t.TempDir()
	made, err := makeSource(dir+"/a/b", true)
	must(t, err)
	want(t, "a directory is a file", made, false)
	st, err := os.Stat(dir + "/a/b")
	must(t, err)
	want(t, "mode", st.Mode(), os.ModeDir|0o755)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	file, err := makeSource(dir+"/file", false)
	must(t, err)
	want(t, "a file is a file", file, true)
	_, err = makeSource(dir+"/none", false)
	want(t, "must be there", errors.Is(err, os.ErrNotExist), true)
	_, err = makeSource(dir+"/file/x", true)
	want(t, "below a file", err != nil, true)
}
