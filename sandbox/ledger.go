package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/store/record"
)

const (
	delBound     = 30 * time.Second // of one DEL
	parallelDels = 4                // of those that are retried: plugins queue behind one lock of the address store anyway
)

// ledger holds what is owed to the network: one record per attachment, from before its ADD until a DEL succeeded.
// It is durable (a reboot frees no address), and outlives the pod.
type ledger struct {
	dir     string
	network Network
	log     *slog.Logger
	turns   chan struct{} // for retries

	mu   sync.Mutex
	busy map[ID]chan struct{} // DELs that run; closed at their end
	owed map[ID]bool          // those that are retried
}

func newLedger(dir string, network Network, log *slog.Logger) *ledger {
	return &ledger{dir: dir, network: network, log: log, turns: make(chan struct{}, parallelDels),
		busy: map[ID]chan struct{}{}, owed: map[ID]bool{}}
}

func (l *ledger) path(id ID) string { return filepath.Join(l.dir, string(id)) }

// write records a debt: before ADD, and again when its result is known.
func (l *ledger) write(id ID, debt cni.Debt) error { return record.Write(l.path(id), debt) }

// read returns the debt of a pod; fs.ErrNotExist if nothing is owed.
func (l *ledger) read(id ID) (cni.Debt, error) {
	var debt cni.Debt
	err := record.Read(l.path(id), &debt)
	return debt, err
}

// strike removes a debt that was paid.
func (l *ledger) strike(id ID) error {
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("strike the debt of pod %s: %w", id, err)
	}
	return nil
}

// settle pays what a pod owes, if it does. DELs of one pod never overlap.
func (l *ledger) settle(ctx context.Context, id ID) error {
	done, err := l.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	debt, err := l.read(id)
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
	return l.strike(id)
}

// begin waits until no other DEL of the pod runs.
func (l *ledger) begin(ctx context.Context, id ID) (done func(), err error) {
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

// retry pays the debt of a pod however long it takes, until ctx ends. Only the first call for a debt does anything.
func (l *ledger) retry(ctx context.Context, id ID) {
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
	persist(ctx, firstPause, lastPause, func(ctx context.Context) bool {
		select {
		case l.turns <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		defer func() { <-l.turns }()
		ctx, cancel := context.WithTimeout(ctx, delBound)
		defer cancel()
		err := l.settle(ctx, id)
		if err != nil {
			l.log.Warn("a network attachment could not be given back, trying again", "pod", id, "error", err)
		}
		return err == nil
	})
}

// ids lists all debts, those of living pods included.
func (l *ledger) ids() ([]ID, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	var ids []ID
	for _, e := range entries {
		if isID(e.Name()) {
			ids = append(ids, ID(e.Name()))
		}
	}
	return ids, nil
}

// persist calls try until it says that it is done or ctx ends, with pauses that double from first to last.
func persist(ctx context.Context, first, last time.Duration, try func(context.Context) bool) {
	for pause := first; !try(ctx); pause = min(2*pause, last) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
