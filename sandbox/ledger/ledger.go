package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/record"
)

const (
	delBound     = 30 * time.Second // of one DEL
	parallelDels = 4                // of those that are retried: plugins queue behind one lock of the address store anyway
)

// Network takes an attachment back; *cni.Network is one.
type Network interface {
	Del(context.Context, cni.Debt) error
}

// Ledger holds the debts of all pods.
type Ledger struct {
	dir     string
	network Network
	log     *slog.Logger
	turns   chan struct{} // for retries

	mu   sync.Mutex
	busy map[string]chan struct{} // DELs that run; closed at their end
	owed map[string]bool          // those that are retried
}

// Open returns the ledger in dir, which is made if it is missing.
func Open(dir string, network Network, log *slog.Logger) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if err := record.Sweep(dir); err != nil {
		log.Warn("cannot sweep the ledger", "error", err)
	}
	return &Ledger{dir: dir, network: network, log: log, turns: make(chan struct{}, parallelDels),
		busy: map[string]chan struct{}{}, owed: map[string]bool{}}, nil
}

func (l *Ledger) path(id string) string { return filepath.Join(l.dir, id) }

// Write records a debt: before ADD, and again when its result is known.
func (l *Ledger) Write(id string, debt cni.Debt) error { return record.Write(l.path(id), debt) }

// Read returns the debt of a pod; fs.ErrNotExist if nothing is owed.
func (l *Ledger) Read(id string) (cni.Debt, error) {
	var debt cni.Debt
	err := record.Read(l.path(id), &debt)
	return debt, err
}

// Strike removes a debt that was paid.
func (l *Ledger) Strike(id string) error {
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("strike the debt of pod %s: %w", id, err)
	}
	return nil
}

// Settle pays what a pod owes, if it does, or gives up after half a minute. DELs of one pod never overlap.
func (l *Ledger) Settle(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, delBound)
	defer cancel()
	done, err := l.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	debt, err := l.Read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, record.ErrCorrupt): // nobody knows any more what to give back; GC of the plugins may
		aside, asideErr := record.SetAside(l.path(id))
		l.log.Error("a debt to the network cannot be read", "pod", id, "now", aside, "error", err)
		return asideErr
	case err != nil:
		return err
	}
	if err := l.network.Del(ctx, debt); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return l.Strike(id)
}

// begin waits until no other DEL of the pod runs.
func (l *Ledger) begin(ctx context.Context, id string) (done func(), err error) {
	for {
		l.mu.Lock()
		other, running := l.busy[id]
		if !running {
			mine := make(chan struct{})
			l.busy[id] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.busy, id)
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the DEL that runs: %w", ctx.Err())
		}
	}
}

// Retry pays the debt of a pod however long it takes, until ctx ends. Only the first call for a debt does anything.
func (l *Ledger) Retry(ctx context.Context, id string) {
	l.mu.Lock()
	again := l.owed[id]
	l.owed[id] = true
	l.mu.Unlock()
	if again {
		return
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.owed, id)
	}()
	stage.Persist(ctx, stage.FirstPause, stage.LastPause, func(ctx context.Context) bool {
		select {
		case l.turns <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		defer func() { <-l.turns }()
		err := l.Settle(ctx, id)
		if err != nil {
			l.log.Warn("a network attachment could not be given back, trying again", "pod", id, "error", err)
		}
		return err == nil
	})
}

// IDs lists the pods of all debts, those of living pods included.
func (l *Ledger) IDs() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") { // else a record that was set aside
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
