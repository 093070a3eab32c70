package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func waiting[T any](g *flights[T]) (all int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.running {
		all += f.waiters
	}
	return all
}

func TestIdenticalPullsRunOnce(t *testing.T) {
	l := newLiar(t, incompressible(t))
	open := make(chan struct{})
	l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
		<-open
		serve(w, r, l.layer(), len(l.layer()))
	}
	n := newNode(t)
	ref := l.Listener.Addr().String() + "/app"
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if id, err := n.Pull(t.Context(), PullRequest{Ref: ref}); err != nil || id != string(l.img.ID) {
				t.Errorf("%q, %v", id, err)
			}
		})
	}
	wg.Go(func() { // the same image, other credentials: a pull of its own, which shares the layer
		if _, err := n.Pull(t.Context(), PullRequest{Ref: ref, Auth: remote.Auth{RegistryToken: "x"}}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "six callers wait", func() bool { return waiting(n.pulls) == 6 && waiting(n.fetches) == 2 })
	close(open)
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for path, hits := range l.hits {
		want := 2 // once for each of the credentials
		if strings.HasSuffix(path, l.img.Layers[0].Digest.String()) {
			want = 1
		}
		if hits != want {
			t.Errorf("%s was asked for %d times, want %d", path, hits, want)
		}
	}
}

func TestImagesThatShareLayersFetchEachOnce(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	shared := registry.Layer{Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: "base"}, Body: strings.Repeat("base", 1<<20)}}}
	var images []*registry.Image
	for i := range 5 {
		images = append(images, registry.Build(t, registry.Spec{Layers: []registry.Layer{shared, {
			Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: "own"}, Body: fmt.Sprint(i)}},
		}}}))
		reg.PushImage(t, fmt.Sprint("app", i), "v1", images[i])
	}
	store, err := layer.Open(layer.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	counting := &countingStore{Store: store}
	n := newNode(t, func(c *Config) { c.Layers = counting })
	front, asked := countBlobs(t, reg.Addr)
	var wg sync.WaitGroup
	for i := range images {
		wg.Go(func() {
			if _, err := n.Pull(t.Context(), PullRequest{Ref: fmt.Sprintf("%s/app%d:v1", front, i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := counting.begun.Load(); got != 6 {
		t.Errorf("%d layers were unpacked, there are 6", got)
	}
	for i := range images {
		for _, l := range images[i].Layers {
			if got := asked(l.Digest); got != 1 {
				t.Errorf("the registry was asked for layer %s %d times", l.Digest, got)
			}
		}
	}
	for i := range images {
		wg.Go(func() {
			if err := n.Remove(t.Context(), string(images[i].ID)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := store.List(); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
	n.mustBeEmpty(t)
}

// countBlobs stands before a registry and counts what it is asked for.
func countBlobs(t *testing.T, registry string) (addr string, asked func(digest.Digest) int) {
	var mu sync.Mutex
	counts := map[string]int{}
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		counts[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
		mu.Unlock()
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return front.Listener.Addr().String(), func(d digest.Digest) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[d.String()]
	}
}

type countingStore struct {
	*layer.Store
	begun atomic.Int32
}

func (s *countingStore) Begin(ctx context.Context) (*layer.Writer, error) {
	s.begun.Add(1)
	return s.Store.Begin(ctx)
}

func TestCancelledCallersOnlyStopWaiting(t *testing.T) {
	l := newLiar(t, incompressible(t))
	open := make(chan struct{})
	gone := make(chan struct{})
	var asked atomic.Int32
	l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
		asked.Add(1)
		serve(w, r, l.layer(), 1000)
		select {
		case <-open:
			_, _ = w.Write(l.layer()[1000:])
		case <-r.Context().Done():
			if hit == 1 {
				close(gone)
			}
		}
	}
	n := newNode(t)
	pull := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := n.Pull(ctx, PullRequest{Ref: l.Listener.Addr().String() + "/app"})
			done <- err
		}()
		return done
	}
	begin := func() (one, two chan error, stopOne, stopTwo context.CancelFunc) {
		ctx1, stop1 := context.WithCancel(t.Context())
		ctx2, stop2 := context.WithCancel(t.Context())
		before := asked.Load()
		one = pull(ctx1)
		eventually(t, "the layer is asked for", func() bool { return asked.Load() > before })
		two = pull(ctx2)
		eventually(t, "both wait", func() bool { return waiting(n.pulls) == 2 })
		return one, two, stop1, stop2
	}

	// Nobody is left: the connection ends and nothing stays.
	one, two, stopOne, stopTwo := begin()
	stopOne()
	if err := <-one; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	stopTwo()
	if err := <-two; !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v", err)
	}
	<-gone
	eventually(t, "work has ended", func() bool { return waiting(n.pulls) == 0 && len(n.files(t)) == 0 })

	// One is left: the one who began may go.
	one, two, stopOne, stopTwo = begin()
	defer stopTwo()
	stopOne()
	if err := <-one; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stage layers") {
		t.Errorf("the first: %v", err)
	}
	close(open)
	if err := <-two; err != nil {
		t.Errorf("the second: %v", err)
	}
}

func TestAnotherPullsFailureIsNotOurs(t *testing.T) {
	img := incompressible(t)
	bad, good := newLiar(t, img), newLiar(t, img)
	asked, open := make(chan struct{}), make(chan struct{})
	bad.blob = func(w http.ResponseWriter, _ *http.Request, _ int) {
		close(asked)
		<-open
		w.WriteHeader(http.StatusForbidden)
	}
	n := newNode(t)
	first := make(chan error, 1)
	go func() {
		_, err := n.Pull(t.Context(), PullRequest{Ref: bad.Listener.Addr().String() + "/app"})
		first <- err
	}()
	<-asked
	second := make(chan error, 1)
	go func() {
		_, err := n.Pull(t.Context(), PullRequest{Ref: good.Listener.Addr().String() + "/app"})
		second <- err
	}()
	eventually(t, "both want the layer", func() bool { return waiting(n.fetches) == 2 })
	close(open)
	if err := <-first; !errors.Is(err, ErrUnauthorized) {
		t.Errorf("the first: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}
}

func TestLayersAreBounded(t *testing.T) {
	var layers []registry.Layer
	for i := range 8 {
		layers = append(layers, registry.Layer{Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: fmt.Sprint(i)}, Body: "x"}}})
	}
	img := registry.Build(t, registry.Spec{Layers: layers})
	l := newLiar(t, img)
	var now, most atomic.Int32
	full := make(chan struct{}, 8)
	l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		full <- struct{}{}
		blob := img.Blobs[digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])]
		serve(w, r, blob, len(blob))
	}
	n := newNode(t, func(c *Config) { c.Bounds.Layers = 2 })
	n.pull(t, l.Listener.Addr().String()+"/app")
	if len(full) != 8 || most.Load() > 2 {
		t.Errorf("%d layers were asked for, %d at a time; want 8, at most 2", len(full), most.Load())
	}
}

// TestPullsRemovalsAndRoots lets everything race and then looks whether all is consistent.
func TestPullsRemovalsAndRoots(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	var images []*registry.Image
	for i := range 3 {
		images = append(images, hello(t, fmt.Sprint(i)))
		reg.PushImage(t, "app", fmt.Sprint(i), images[i])
	}
	n := newNode(t)
	var wg sync.WaitGroup
	for worker := range 6 {
		rng := rand.New(rand.NewPCG(uint64(worker), 1))
		wg.Go(func() {
			for step := range 25 {
				i := rng.IntN(len(images))
				switch rng.IntN(3) {
				case 0:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(20))*time.Millisecond)
					_, err := n.Pull(ctx, PullRequest{Ref: fmt.Sprintf("%s/app:%d", reg.Addr, i)})
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					cancel()
				case 1:
					if err := n.Remove(t.Context(), string(images[i].ID)); err != nil {
						t.Error(err)
					}
				case 2:
					useRoot(t, n, string(images[i].ID), fmt.Sprintf("c-%d-%d", worker, step), fmt.Sprint(i))
				}
			}
		})
	}
	wg.Wait()
	for _, img := range n.List() {
		useRoot(t, n, img.ID, "last-"+img.ID[7:20], "")
		if err := n.Remove(t.Context(), img.ID); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "work has ended", func() bool { return waiting(n.pulls) == 0 && len(n.store.List()) == 0 })
	n.stop()
	nodeAt(t, n.dir).mustBeEmpty(t)
}

func useRoot(t *testing.T, n *node, image, container, want string) {
	root, err := n.Rootfs(t.Context(), image, container, layer.RootOptions{})
	if errors.Is(err, ErrNotFound) {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	if got, err := read(t, root, "etc/a"); err != nil || want != "" && got != want {
		t.Errorf("image %s shows %q, %v; want %q", image, got, err, want)
	}
	if err := errors.Join(root.Close(), n.ReleaseRootfs(t.Context(), container)); err != nil {
		t.Error(err)
	}
}

// slowRemoval is a store that removes when it is told to.
type slowRemoval struct {
	LayerStore
	begun, finish chan struct{}
	present       atomic.Bool
}

func (s *slowRemoval) Has(digest.Digest) bool { return s.present.Load() }

func (s *slowRemoval) Remove(digest.Digest) (int64, error) {
	close(s.begun)
	<-s.finish
	s.present.Store(false)
	return 1, nil
}

func TestWhoWantsALayerWaitsForItsRemoval(t *testing.T) {
	store := &slowRemoval{begun: make(chan struct{}), finish: make(chan struct{})}
	store.present.Store(true)
	h := newHolds(store)
	layers := []digest.Digest{digest.FromString("x")}
	if err := h.acquire(t.Context(), layers); err != nil {
		t.Fatal(err)
	}
	released := make(chan error, 1)
	go func() { released <- h.release(layers) }()
	<-store.begun
	ctx, cancel := context.WithCancelCause(t.Context())
	impatient := errors.New("impatient")
	cancel(impatient)
	if err := h.acquire(ctx, layers); !errors.Is(err, impatient) {
		t.Errorf("acquired while it is removed: %v", err)
	}
	acquired := make(chan bool, 1)
	go func() {
		err := h.acquire(t.Context(), layers)
		acquired <- err == nil && !store.Has(layers[0])
	}()
	close(store.finish)
	if err := <-released; err != nil {
		t.Error(err)
	}
	if !<-acquired {
		t.Error("acquired before the removal had ended")
	}
}

// forgetful is a store that denies a layer once.
type forgetful struct {
	countingStore
	deny atomic.Bool
}

func (s *forgetful) Has(id digest.Digest) bool { return !s.deny.Swap(false) && s.countingStore.Has(id) }

func TestLayerThatAppearsMeanwhileIsNotFetched(t *testing.T) {
	l := newLiar(t, incompressible(t))
	store, err := layer.Open(layer.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	late := &forgetful{countingStore: countingStore{Store: store}}
	n := newNode(t, func(c *Config) { c.Layers = late })
	ref := l.Listener.Addr().String() + "/app"
	n.pull(t, ref)
	late.deny.Store(true)
	n.pull(t, ref)
	if got := late.begun.Load(); got != 1 || late.deny.Load() {
		t.Errorf("unpacked %d times", got)
	}
}
