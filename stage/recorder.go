package stage

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Recorder is the flight recorder: it knows the operations that run and the last ones that ended. A nil *Recorder records nothing.
type Recorder struct {
	mu      sync.Mutex
	running map[*Op]struct{}
	ended   []Record // a ring; next is where the oldest stands once it is full
	next    int
	size    int
}

// Record is what is known of one operation. It is a copy and never changes.
type Record struct {
	Name    string        `json:"name"`    // what is done: "RunPodSandbox"
	Subject string        `json:"subject"` // to what: an identity, never a secret
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took_ns"` // so far, while Running
	Running bool          `json:"running,omitempty"`
	Error   string        `json:"error,omitempty"`
	Stages  []Stage       `json:"stages,omitempty"`
	Dropped int           `json:"dropped_stages,omitempty"` // stages beyond maxStages
}

// Stage is one stage of a Record.
type Stage struct {
	Name    string        `json:"name"`
	Offset  time.Duration `json:"offset_ns"` // from the begin of the operation
	Took    time.Duration `json:"took_ns"`   // so far, while Running
	Running bool          `json:"running,omitempty"`
	Error   string        `json:"error,omitempty"`
}

// maxStages bounds what one operation may record.
const maxStages = 64

// NewRecorder returns a recorder of the last size operations; size must be positive.
func NewRecorder(size int) *Recorder {
	return &Recorder{running: map[*Op]struct{}{}, size: size}
}

// Op is one operation under way. A nil *Op records nothing.
type Op struct {
	rec           *Recorder
	name, subject string
	began         time.Time

	mu      sync.Mutex
	stages  []Stage
	dropped int
	joined  *Op // whose result this one waited for last; its stages are shown as ours
	took    time.Duration
	err     error
	ended   bool
}

type opKey struct{}

// FromContext returns the operation that ctx belongs to, or nil.
func FromContext(ctx context.Context) *Op {
	op, _ := ctx.Value(opKey{}).(*Op)
	return op
}

// Start begins an operation; the stages run under the returned context are its stages. End must be called once.
// The new operation begins with no stage of an outer one in its path.
func (r *Recorder) Start(ctx context.Context, name, subject string) (context.Context, *Op) {
	op := &Op{rec: r, name: name, subject: subject, began: time.Now()}
	if r != nil {
		r.mu.Lock()
		r.running[op] = struct{}{}
		r.mu.Unlock()
	}
	ctx = context.WithValue(ctx, pathKey{}, nil)
	return context.WithValue(ctx, opKey{}, op), op
}

// End ends the operation. It is kept if it failed or had stages of its own: a plain read leaves no trace.
func (o *Op) End(err error) {
	o.mu.Lock()
	o.took, o.err, o.ended = time.Since(o.began), err, true
	keep := err != nil || len(o.stages) > 0
	o.mu.Unlock()
	if o.rec != nil {
		o.rec.end(o, keep)
	}
}

func (r *Recorder) end(o *Op, keep bool) {
	record := o.Record()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, o)
	switch {
	case !keep:
	case len(r.ended) < r.size:
		r.ended = append(r.ended, record)
	default:
		r.ended[r.next] = record
		r.next = (r.next + 1) % r.size
	}
}

// Record returns what is known of the operation now, with the stages of the operation that it waits or waited for.
func (o *Op) Record() Record {
	o.mu.Lock()
	r := Record{Name: o.name, Subject: o.subject, Began: o.began, Took: o.took, Running: !o.ended, Dropped: o.dropped}
	r.Stages = slices.Clone(o.stages)
	if o.err != nil {
		r.Error = o.err.Error()
	}
	joined := o.joined
	o.mu.Unlock()

	now := time.Now()
	if r.Running {
		r.Took = now.Sub(o.began)
	}
	for i := range r.Stages {
		if s := &r.Stages[i]; s.Running {
			s.Took = now.Sub(o.began) - s.Offset
		}
	}
	if joined == nil {
		return r
	}
	other := joined.Record()
	shift := joined.began.Sub(o.began) // negative if it ran before we came
	for _, s := range other.Stages {
		s.Offset += shift
		r.Stages = append(r.Stages, s)
	}
	r.Dropped += other.Dropped
	return r
}

// stage is the last of the stages that run.
func (r Record) stage() (Stage, bool) {
	for _, s := range slices.Backward(r.Stages) {
		if r.Running && s.Running {
			return s, true
		}
	}
	return Stage{}, false
}

// Where says in words what the operation does and since when: "in stage network for 4.2 s", "ended after 5.0 s".
func (o *Op) Where() string {
	r := o.Record()
	if !r.Running {
		return "ended after " + Duration(r.Took)
	}
	if s, ok := r.stage(); ok {
		return fmt.Sprintf("in stage %s for %s", s.Name, Duration(s.Took))
	}
	return fmt.Sprintf("between stages for %s", Duration(r.Took))
}

// Stage is the stage that runs; empty between stages and after the end.
func (o *Op) Stage() string {
	s, _ := o.Record().stage()
	return s.Name
}

// join shows the stages of other as those of o.
func (o *Op) join(other *Op) {
	if o == nil || o == other {
		return
	}
	o.mu.Lock()
	o.joined = other
	o.mu.Unlock()
}

// begin records that a stage began; what it returns records its end.
func (o *Op) begin(name string, at time.Time) (finish func(time.Duration, error)) {
	if o == nil {
		return func(time.Duration, error) {}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.stages) == maxStages {
		o.dropped++
		return func(time.Duration, error) {}
	}
	i := len(o.stages)
	o.stages = append(o.stages, Stage{Name: name, Offset: at.Sub(o.began), Running: true})
	return func(took time.Duration, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		s := &o.stages[i]
		s.Running, s.Took = false, took
		if err != nil {
			s.Error = err.Error()
		}
	}
}

// Records returns what is remembered: the operations that ended, the oldest end first, then those that run, by begin.
func (r *Recorder) Records() []Record {
	r.mu.Lock()
	out := slices.Concat(r.ended[r.next:], r.ended[:r.next])
	running := make([]*Op, 0, len(r.running))
	for op := range r.running {
		running = append(running, op)
	}
	r.mu.Unlock()
	slices.SortFunc(running, func(a, b *Op) int { return cmp.Compare(a.began.UnixNano(), b.began.UnixNano()) })
	for _, op := range running {
		out = append(out, op.Record())
	}
	return out
}

// WriteJSON writes Records as one JSON array.
func (r *Recorder) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r.Records()); err != nil {
		return fmt.Errorf("write flight record: %w", err)
	}
	return nil
}
