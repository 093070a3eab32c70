package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestDeadFileSystemCostsOneThread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sources
		var calls atomic.Int32
		alive := make(chan struct{})
		look := func(string) error {
			calls.Add(1)
			<-alive
			return nil
		}
		mounts := []*runtimev1.Mount{{HostPath: "/dead", ContainerPath: "/mnt"}}
		for range 3 {
			began := time.Now()
			err := s.make(t.Context(), mounts, look)
			want(t, "names the mount", err != nil && strings.Contains(err.Error(), "host_path /dead of the mount on /mnt: its file system has not answered"), true)
			want(t, "gave up after", time.Since(began), sourceBound)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		want(t, "gives up with its caller", errors.Is(s.make(ctx, mounts, look), context.DeadlineExceeded), true)
		want(t, "asked", int(calls.Load()), 1)
		close(alive)
		must(t, s.make(t.Context(), mounts, look))
		synctest.Wait()
		must(t, s.make(t.Context(), mounts, look))
		want(t, "asked again", calls.Load() >= 2, true)
	})
}

func TestMakeSource(t *testing.T) {
	dir := t.TempDir()
	must(t, makeSource(dir+"/a/b"))
	st, err := os.Stat(dir + "/a/b")
	must(t, err)
	want(t, "mode", st.Mode(), os.ModeDir|0o755)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	must(t, makeSource(dir+"/file"))
	want(t, "below a file", makeSource(dir+"/file/x") != nil, true)
}
