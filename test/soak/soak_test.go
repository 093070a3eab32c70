package soak

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vishvananda/netlink"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/leak"
	"github.com/criserver/criserver/test/registry"
)

// programs are what containers run.
var programs = []string{"busybox", "sleep", "sh", "bridge", "host-local", "portmap", "loopback"}

const churning = 3 // images that come and go

// soak is all that lives share.
type soak struct {
	t         *testing.T
	d         *daemon
	busybox   string
	churn     []string
	addresses sync.Map // IP -> pod id
	serial    atomic.Int64
	lives     atomic.Int64
	pulls     atomic.Int64
	failures  atomic.Int64
	mu        sync.Mutex // of what the copies of one request count
}

// image is the one that is always there.
func (s *soak) image(*rand.Rand) string { return s.busybox }

func TestSoak(t *testing.T) {
	if *lasting == 0 {
		t.Skip("started by hand: make soak")
	}
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", *seed)
	s := &soak{t: t}
	s.pushImages(registry.Start(t, registry.Options{}))
	var err error
	if s.d, err = newDaemon(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	if _, err := s.d.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: s.busybox}}); err != nil {
		t.Fatal(err)
	}
	warm := &life{s: s, r: rand.New(rand.NewPCG(1, 0)), serial: s.serial.Add(1)}
	if err := errors.Join(warm.live(t.Context()), s.warmBridge()); err != nil {
		t.Fatal(err)
	}
	before := s.look()
	for began, n := time.Now(), uint64(0); time.Since(began) < *lasting && !t.Failed(); n++ {
		s.epoch(n)
		s.compare(before)
		t.Logf("epoch %d: %d lives, %d pulls, %d kills of criserver, %d failures, slowest start %v, %d threads", n, s.lives.Load(), s.pulls.Load(),
			s.d.kills, s.failures.Load(), s.d.slowUp.Round(time.Millisecond), s.d.threads())
	}
}

// epoch lets everybody loose for a while, and returns when all that they made is removed again.
func (s *soak) epoch(n uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), *epoch)
	defer cancel()
	var wg, haunting sync.WaitGroup
	haunted, stop := context.WithCancel(context.Background())
	defer stop()
	haunting.Go(func() {
		if err := s.d.haunt(haunted, rand.New(rand.NewPCG(*seed, n))); err != nil {
			s.fail("criserver", err)
			cancel()
		}
	})
	for w := range *workers {
		r := rand.New(rand.NewPCG(*seed, n<<16|uint64(w)<<1|1))
		wg.Go(func() {
			for ctx.Err() == nil {
				l := &life{s: s, r: r, serial: s.serial.Add(1)}
				if err := l.live(context.Background()); err != nil {
					s.fail(fmt.Sprintf("life %d (%s), pod %s", l.serial, l.name, l.podID), err)
				}
				s.lives.Add(1)
			}
		})
	}
	wg.Go(func() { s.churnImages(ctx, rand.New(rand.NewPCG(*seed, n<<16))) })
	wg.Go(func() { s.watch(ctx) })
	wg.Wait()
	stop()
	haunting.Wait()
}

func (s *soak) fail(who string, err error) {
	s.failures.Add(1)
	s.t.Errorf("%s %s: %v", time.Now().Format("15:04:05.000"), who, err)
}

// watch lists all the time and says if two pods have one identity, or a list is slow.
func (s *soak) watch(ctx context.Context) {
	for ctx.Err() == nil {
		within, cancel := context.WithTimeout(ctx, 5*time.Second)
		list, err := s.d.runtime.ListPodSandbox(within, &cri.ListPodSandboxRequest{})
		cancel()
		if err != nil && !passing(err) {
			s.fail("list", err)
		}
		seen := map[string]string{}
		for _, p := range list.GetItems() {
			key := p.Metadata.String()
			if other, ok := seen[key]; ok && p.State == cri.PodSandboxState_SANDBOX_READY {
				s.fail("list", fmt.Errorf("pods %s and %s are both %s", other, p.Id, key))
			}
			if p.State == cri.PodSandboxState_SANDBOX_READY {
				seen[key] = p.Id
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// churnImages pulls and removes images that share their first layer with the one that lives use.
func (s *soak) churnImages(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		ref := s.churn[r.IntN(len(s.churn))]
		spec := &cri.ImageSpec{Image: ref}
		_, err := ask(context.Background(), r, "PullImage", func(ctx context.Context) (string, error) {
			answer, err := s.d.images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
			return answer.GetImageRef(), err
		})
		if err == nil {
			_, err = ask(context.Background(), r, "RemoveImage", func(ctx context.Context) (*cri.RemoveImageResponse, error) {
				return s.d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
			})
		}
		if err != nil {
			s.fail("image "+ref, err)
		}
		s.pulls.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.IntN(300)) * time.Millisecond):
		}
	}
}

// state is what must be the same whenever no pod is there.
type state struct {
	system, cgroups leak.State
	descriptors     []string
}

func (s *soak) systemKinds() []leak.Option {
	return []leak.Option{leak.Without(leak.Cgroup, leak.Goroutine, leak.Descriptor), leak.Processes(programs...), leak.Ignore(leak.PortmapResidue),
		leak.Ignore(`/bin/criserver --config \S+ serve$`), leak.Within(patience),
		leak.Files(s.d.path("root"), s.d.path("state"), s.d.path("net.d"), filepath.Join(place.dir, "logs"), "/run"), leak.Ignore(`^/run/xtables.lock `), leak.Ignore(leak.Footings)}
}

func (s *soak) cgroupKinds() []leak.Option {
	return []leak.Option{leak.Only(leak.Cgroup), leak.Within(patience), leak.Match(place.cgroups + "(/|$)")}
}

func (s *soak) look() (st state) {
	var errs [3]error
	st.system, errs[0] = leak.Snapshot(s.systemKinds()...)
	st.cgroups, errs[1] = leak.Snapshot(s.cgroupKinds()...)
	st.descriptors, errs[2] = s.d.descriptors()
	if err := errors.Join(errs[:]...); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// compare reports what is not as before.
func (s *soak) compare(before state) {
	for _, part := range []struct {
		before leak.State
		kinds  []leak.Option
	}{{before.system, s.systemKinds()}, {before.cgroups, s.cgroupKinds()}} {
		left, err := leak.Settle(part.before, part.kinds...)
		if err != nil {
			s.t.Error(err)
		}
		for _, d := range left {
			s.t.Errorf("leak: %s", d)
		}
	}
	var more []string
	for over := time.Now().Add(patience); ; {
		now, err := s.d.descriptors()
		if err != nil {
			s.t.Error(err)
		}
		if more = leak.Surplus(now, before.descriptors); len(more) == 0 || time.Now().After(over) {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	for _, line := range more {
		s.t.Errorf("leak: descriptor of criserver: %s", line)
	}
}

// end stops criserver and removes its bridge, which it keeps for its next start.
func (s *soak) end() {
	if s.t.Failed() {
		s.t.Logf("criserver's last messages:\n%s", s.d.lastLog())
	}
	if err := s.d.stop(); err != nil {
		s.t.Error(err)
	}
	_ = s.d.conn.Close() // nothing is under way on it
	if link, err := netlink.LinkByName(s.d.bridge); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			s.t.Error(err)
		}
	}
}

// warmBridge has the bridge made, which stays.
func (s *soak) warmBridge() error {
	for range 20 { // half of all lives have a network of their own
		l := &life{s: s, r: rand.New(rand.NewPCG(2, uint64(s.serial.Load()))), serial: s.serial.Add(1)}
		if err := l.live(context.Background()); err != nil {
			return err
		}
		if _, err := netlink.LinkByName(s.d.bridge); err == nil {
			return nil
		}
	}
	return errors.New("no bridge was made")
}

func (s *soak) pushImages(r *registry.Registry) {
	base := registry.Layer{Files: busybox(s.t), Compression: "gzip"}
	push := func(repo string, layers ...registry.Layer) string {
		img := registry.Build(s.t, registry.Spec{Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}}}, Layers: layers})
		r.PushImage(s.t, repo, "latest", img)
		return r.Addr + "/" + repo + ":latest"
	}
	s.busybox = push("busybox", base)
	for i := range churning {
		var files []registry.File
		for j := range 200 {
			files = append(files, registry.File{Header: tar.Header{Name: fmt.Sprintf("data/%d/%d", i, j), Mode: 0o644}, Body: strings.Repeat("x", 100*j)})
		}
		s.churn = append(s.churn, push(fmt.Sprintf("churn%d", i), base, registry.Layer{Files: files, Compression: "gzip"}))
	}
}

// busybox is a root with the machine's static busybox under all its names.
func busybox(t testing.TB) (files []registry.File) {
	for _, name := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"} {
		files = append(files, registry.File{Header: tar.Header{Name: name, Mode: 0o755}})
	}
	return append(files, registry.Busybox(t)...)
}
