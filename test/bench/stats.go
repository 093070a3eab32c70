package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/bench/lists"
)

// statsTarget is how much less time than a peer a list of statistics may take.
const statsTarget = 1.0 / 10

// statsGap lies between two rounds, so that no daemon answers from what it has just read.
const statsGap = 200 * time.Millisecond

// statsLists are the lists that are asked for, in the order of a round. Their items are in field 1.
var statsLists = []struct {
	name            string
	request, answer proto.Message
}{
	{"ListContainerStats", &cri.ListContainerStatsRequest{}, &cri.ListContainerStatsResponse{}},
	{"ListPodSandboxStats", &cri.ListPodSandboxStatsRequest{}, &cri.ListPodSandboxStatsResponse{}},
	{"ListPodSandboxMetrics", &cri.ListPodSandboxMetricsRequest{}, &cri.ListPodSandboxMetricsResponse{}},
}

const itemsField = 1

// values counts the numbers in an answer: servers do not tell the same. CRI wraps every one that is measured, or is of a metric.
func values(m protoreflect.Message) (n int) {
	if m.Descriptor().FullName() == (&cri.UInt64Value{}).ProtoReflect().Descriptor().FullName() {
		return 1
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				n += values(v.List().Get(i).Message())
			}
		default:
			n += values(v.Message())
		}
		return true
	})
	return n
}

// A list that took longer than slowList is asked for in slowRounds rounds only.
const (
	slowList   = time.Second
	slowRounds = 4
)

// statsRound asks for every list once, and notes in told how many values it has. What counts is when its bytes are there: decoding
// them is this process' work. A list that the daemon does not know is left out.
func (d *daemon) statsRound(want int, told map[string]int) func(context.Context) ([]lap, error) {
	slow := map[string]int{}
	var text []byte
	return func(ctx context.Context) ([]lap, error) {
		var all []lap
		for _, l := range statsLists {
			if slow[l.name] == slowRounds {
				continue
			}
			runtime.GC() // of what the lists before have left
			cpu := d.cpuTime()
			took, err := lists.Take(ctx, d.conn, l.name, l.request, &text)
			cpu = d.cpuTime() - cpu
			if status.Code(err) == codes.Unimplemented {
				continue
			}
			if err == nil {
				err = proto.Unmarshal(text, l.answer)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			answer := l.answer.ProtoReflect()
			if n := answer.Get(answer.Descriptor().Fields().ByNumber(itemsField)).List().Len(); n != want {
				return nil, fmt.Errorf("%s has %d items instead of %d", l.name, n, want)
			}
			told[l.name] = values(answer)
			proto.Reset(l.answer)
			if took > slowList {
				slow[l.name]++
			}
			all = append(all, lap{l.name, took}, lap{l.name + lapDaemonCPU, cpu})
		}
		return all, nil
	}
}

// lapDaemonCPU marks the processor time that the daemon's own process, without shims, has used meanwhile: it tells more of a busy machine.
const lapDaemonCPU = ", CPU time"

// cpuTime is that of the daemon's process.
func (d *daemon) cpuTime() time.Duration { return cpuTimeOf(d.cmd.Process.Pid) }

// cpuTimeOf is by the clock that the kernel keeps for a process; 0 if it is gone.
func cpuTimeOf(pid int) time.Duration {
	const scheduler = 2
	var t unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|scheduler), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// measureStats asks for statistics of all pods, each of which has a container that runs.
func measureStats(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	n := b.rounds(b.pods)
	heading(fmt.Sprintf("CRI: statistics of %d one-container pods on the host network, ms", n))
	var everybody []contender
	told := map[string]map[string]int{} // by daemon and list
	for _, d := range all {
		if _, err := d.fill(ctx, onHost, n, nil); err != nil {
			return err
		}
		told[d.name] = map[string]int{}
		everybody = append(everybody, contender{d.name, d.statsRound(n, told[d.name])})
	}
	loop, err := inTurns(ctx, b.rounds(12), statsGap, everybody)
	if err != nil {
		return err
	}
	t := table{header: []string{"", "", "p50", "p99", "values", "us a value, p50", "rounds"}}
	for _, s := range loop {
		of := told[s.contender][strings.TrimSuffix(s.lap, lapDaemonCPU)]
		each := fmt.Sprintf("%.2f", s.percentile(0.5).Seconds()*1e6/float64(max(of, 1)))
		t.add(s.contender, s.lap, ms(s.percentile(0.5)), ms(s.percentile(0.99)), fmt.Sprint(of), each, fmt.Sprint(len(s.times)))
	}
	t.print()
	for _, l := range statsLists {
		b.compareDaemons(fmt.Sprintf("%s of %d pods", l.name, n), loop, l.name, statsTarget)
	}
	return nil
}
