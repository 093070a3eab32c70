package layer

import (
	"archive/tar"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/criserver/criserver/store/layer/tartest"
)

func TestRunSyncsWhenNothingIsUnpacked(t *testing.T) {
	rows := []struct {
		name string
		then func(w *Writer) error
	}{
		{"the other layer ended", (*Writer).Discard},
		{"the other layer ended twice", func(w *Writer) error { _ = w.Discard(); return w.Discard() }},
		{"the other layer takes too long", func(*Writer) error { time.Sleep(syncDelay); return nil }},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open(t, Config{Root: t.TempDir(), Format: EROFS, BootID: "first"})
				run, stop := context.WithCancel(ctx)
				defer stop()
				go s.Run(run)
				other, err := s.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = other.Discard() }() // harmless again
				id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 5000}))
				synctest.Wait()
				if l, err := s.Stat(id); err != nil || l.Durable {
					t.Errorf("while another layer is unpacked: %+v, %v", l, err)
				}
				if err := row.then(other); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				if l, err := s.Stat(id); err != nil || !l.Durable {
					t.Errorf("after that: %+v, %v", l, err)
				}
				if n := s.unpacking.Load(); n != 0 && row.name != rows[2].name {
					t.Errorf("%d layers are being unpacked", n)
				}
			})
		})
	}
}

func TestRunSyncsWhenItIsLet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Config{Root: t.TempDir(), Format: EROFS, BootID: "first"})
		run, stop := context.WithCancel(ctx)
		defer stop()
		go s.Run(run)
		let := s.HoldSync()
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 5000}))
		synctest.Wait()
		if l, err := s.Stat(id); err != nil || l.Durable {
			t.Errorf("while it is held: %+v, %v", l, err)
		}
		let()
		synctest.Wait()
		if l, err := s.Stat(id); err != nil || !l.Durable {
			t.Errorf("after that: %+v, %v", l, err)
		}
	})
}

// What a sync holds is not free, so Remove waits for it, though not for a disk that takes too long. A sync of the file system holds what
// is in any directory; one of an image the files of that image.
func TestRemoveWaitsForASync(t *testing.T) {
	for _, row := range []struct {
		name   string
		format Format
		tree   bool
		takes  time.Duration
		want   time.Duration
	}{
		{"image", EROFS, false, time.Second, time.Second},
		{"image on a slow disk", EROFS, false, time.Hour, freeBound},
		{"image, beside that of directories", EROFS, true, time.Second, time.Second},
		{"directory", Overlay, true, time.Second, time.Second},
		{"directory on a slow disk", Overlay, true, time.Hour, freeBound},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open(t, Config{Root: t.TempDir(), Format: row.format, BootID: "first"})
				id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 5000}))
				e := s.layers[id]
				takesTime := func() error {
					time.Sleep(row.takes)
					return nil
				}
				began := time.Now()
				var syncs sync.WaitGroup
				if row.tree {
					syncs.Go(func() { _ = s.whileTreeSyncs(takesTime) })
				} else {
					dir, err := s.openEntry(e)
					if err != nil {
						t.Fatal(err)
					}
					syncs.Go(func() {
						_ = takesTime()
						e.closeEntry(dir)
					})
				}
				synctest.Wait()
				if _, err := s.Remove(id); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != row.want {
					t.Errorf("a removal takes %s beside a sync of %s, want %s", took, row.takes, row.want)
				}
				syncs.Wait()
			})
		})
	}
}
