package progress

import (
	"log/slog"
	"time"
)

// Stage is what a layer can be slow at.
type Stage int

// The stages of a layer. Those from Network on work at the same time.
const (
	Queue   Stage = iota // waiting for its turn: layers, connections and memory are bounded over all pulls
	Retry                // from a failure to the next byte: waiting for another attempt, asking mirrors
	Network              // waiting for the registry
	Inflate              // decompressing
	Hash                 // the digests of the packed and of the plain bytes
	Write                // unpacking into the store
	stages
)

var stageNames = [stages]string{"queue", "retry", "network", "inflate", "hash", "write"}

func (s Stage) String() string { return stageNames[s] }

// Times are what the stages took.
type Times [stages]time.Duration

// Add adds those of another layer.
func (t *Times) Add(other Times) {
	for s := range t {
		t[s] += other[s]
	}
}

// Since is what was added after former, of layers that may have ended meanwhile: no stage has less than nothing.
func (t Times) Since(former Times) (added Times) {
	for s := range t {
		added[s] = max(t[s]-former[s], 0)
	}
	return added
}

// Slowest is the stage that took the longest.
func (t Times) Slowest() Stage {
	slowest := Queue
	for s := range t {
		if t[s] > t[slowest] {
			slowest = Stage(s)
		}
	}
	return slowest
}

// LogValue is a group of all stages, in milliseconds.
func (t Times) LogValue() slog.Value {
	var all []slog.Attr
	for s, d := range t {
		all = append(all, slog.Int64(Stage(s).String()+"_ms", d.Milliseconds()))
	}
	return slog.GroupValue(all...)
}
