package ledger

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/stage"
)

// plugins need a second for a DEL and count those that run at a time.
type plugins struct {
	mu                sync.Mutex
	running, most, no int
	fail              error
}

func (p *plugins) Del(ctx context.Context, _ cni.Debt) error {
	p.count(1)
	defer p.count(-1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail
}

func (p *plugins) count(by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running += by
	p.most = max(p.most, p.running)
	p.no += max(by, 0)
}

func open(t *testing.T, p *plugins) *Ledger {
	t.Helper()
	l, err := Open(t.TempDir(), p, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write("pod", cni.Debt{}); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Ledger) mustOwe(t *testing.T, owed bool) {
	t.Helper()
	if _, err := l.Read("pod"); errors.Is(err, fs.ErrNotExist) == owed {
		t.Errorf("reading the debt: %v; owed should be %v", err, owed)
	}
	if ids, err := l.IDs(); err != nil || (len(ids) == 1) != owed {
		t.Errorf("debts of %v, %v; owed should be %v", ids, err, owed)
	}
}

func TestDelsOfOnePodDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plugins{}
		l := open(t, p)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := l.Settle(t.Context(), "pod"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if p.most != 1 || p.no != 1 {
			t.Errorf("%d DELs, %d at a time, want one", p.no, p.most)
		}
		l.mustOwe(t, false)
	})
}

func TestDebtIsPaidInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plugins{fail: errors.New("plugin is missing")}
		l := open(t, p)
		if err := l.Settle(t.Context(), "pod"); !errors.Is(err, p.fail) {
			t.Errorf("got %v, want the plugin's error", err)
		}
		l.mustOwe(t, true)
		for range 3 {
			go l.Retry(t.Context(), "pod")
		}
		time.Sleep(time.Hour)
		p.mu.Lock()
		if p.most != 1 || p.no > 25 {
			t.Errorf("%d DELs in an hour, %d at a time", p.no, p.most)
		}
		p.fail = nil
		p.mu.Unlock()
		time.Sleep(stage.LastPause + time.Minute)
		l.mustOwe(t, false)
	})
}

func TestDebtThatCannotBeReadIsSetAside(t *testing.T) {
	p := &plugins{}
	l := open(t, p)
	if err := os.WriteFile(l.path("pod"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	l.mustOwe(t, false)
	if kept, err := filepath.Glob(filepath.Join(l.dir, "pod.corrupt-*")); err != nil || len(kept) != 1 {
		t.Errorf("set aside: %v, %v", kept, err)
	}
	if p.no != 0 {
		t.Error("a DEL of nobody knows what")
	}
}
