package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// large is the content of a blob that is fetched in parts: a head of 64 KiB and 12 parts of 16 KiB, the last one shorter.
var large = func() []byte {
	data := make([]byte, 64<<10+11*16<<10+100)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}()

func largeDesc() ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(large), Size: int64(len(large))}
}

// smallLanes has room for extra parts beside the one that every blob has.
func smallLanes(extra int64) *Lanes {
	const part = 16 << 10
	return &Lanes{connections: semaphore.NewWeighted(extra), memory: semaphore.NewWeighted(extra * part), perBlob: 4, head: 64 << 10, part: part}
}

// unused says whether everything was given back.
func (l *Lanes) unused(extra int64) bool {
	return l.connections.TryAcquire(extra) && l.memory.TryAcquire(extra*l.part)
}

// span reads the Range of a request; whole is that it has none.
func span(r *http.Request) (from, to int, whole bool) {
	ask := r.Header.Get("Range")
	if n, _ := fmt.Sscanf(ask, "bytes=%d-%d", &from, &to); n == 2 {
		return from, to + 1, false
	}
	return from, len(large), ask == ""
}

// serveRange answers as it was asked.
func serveRange(w http.ResponseWriter, r *http.Request) {
	from, to, whole := span(r)
	sendRange(w, from, to, whole)
}

func sendRange(w http.ResponseWriter, from, to int, whole bool) {
	w.Header().Set("Content-Length", fmt.Sprint(to-from))
	if !whole {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(large)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(large[from:to]) // the client may be gone
}

func TestPartsComeOverSeveralConnectionsInOrder(t *testing.T) {
	const extra = 3
	lanes := smallLanes(extra)
	var now, most atomic.Int32
	three := make(chan struct{})
	var once sync.Once
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if from, _, _ := span(r); from == 0 {
			serveRange(w, r)
			return
		}
		n := now.Add(1)
		defer now.Add(-1)
		most.Store(max(most.Load(), n))
		if n == 3 {
			once.Do(func() { close(three) })
		}
		select {
		case <-three: // nobody is answered before three have asked
		case <-r.Context().Done():
		}
		serveRange(w, r)
	})
	b := open(t, Config{Lanes: lanes}, s.host()+"/app", Auth{}).Blob(t.Context(), largeDesc())
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, large) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(large), err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if n := most.Load(); n < 3 || n > 4 {
		t.Errorf("%d parts at a time, want 3 or 4", n)
	}
	if asked := s.seen("Range"); len(asked) != 13 || !slices.Contains(asked, "bytes=0-65535") || !slices.Contains(asked, "bytes=245760-245859") {
		t.Errorf("asked for %q", asked)
	}
	if !lanes.unused(extra) {
		t.Error("not all lanes were given back")
	}
}

func TestPartsWithoutRoomComeOneByOne(t *testing.T) {
	lanes := smallLanes(1)
	if !lanes.take() { // somebody else has it
		t.Fatal("no lane")
	}
	var now, most atomic.Int32
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		serveRange(w, r)
	})
	b := open(t, Config{Lanes: lanes}, s.host()+"/app", Auth{}).Blob(t.Context(), largeDesc())
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, large) || len(s.seen("Range")) != 13 {
		t.Errorf("%d bytes of %d, %v", len(got), len(large), err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Memory of parts that are read and not asked for again belongs to other blobs.
func TestPartsKeepNoMemoryWithoutALane(t *testing.T) {
	s := serveHTTP(t, false, serveRange)
	b := open(t, Config{Lanes: smallLanes(3)}, s.host()+"/app", Auth{}).Blob(t.Context(), largeDesc())
	defer func() { _ = b.Close() }()
	some, most := make([]byte, 4<<10), 0
	for n, err := 0, error(nil); err == nil; n, err = b.Read(some) {
		if b.parts == nil {
			continue
		}
		most = max(most, len(b.parts.queue))
		if free := len(b.parts.spare); free > 0 {
			t.Fatalf("%d parts of memory are kept that no lane is taken for, after %d bytes", free, n)
		}
	}
	if most < 2 {
		t.Errorf("%d parts at a time: nothing was shown", most)
	}
}

func TestAbandonedPartsEnd(t *testing.T) {
	lanes := smallLanes(3)
	asked := make(chan struct{}, 16)
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if from, _, _ := span(r); from == 0 {
			serveRange(w, r)
			return
		}
		asked <- struct{}{}
		<-r.Context().Done()
	})
	b := open(t, Config{Lanes: lanes}, s.host()+"/app", Auth{}).Blob(t.Context(), largeDesc())
	if _, err := io.ReadFull(b, make([]byte, lanes.head)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { _, err := b.Read(make([]byte, 1)); ended <- err }()
	<-asked
	<-asked
	<-asked
	b.parts.cancel()
	if err := <-ended; err == nil {
		t.Error("a read of abandoned parts succeeded")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if !lanes.unused(3) {
		t.Error("not all lanes were given back")
	}
}

// TestServersThatAreWrongAboutRanges shows that one stream brings the blob all the same.
func TestServersThatAreWrongAboutRanges(t *testing.T) {
	rest := func(w http.ResponseWriter, r *http.Request) { // of the head and of a request without range
		if from, _, whole := span(r); from != 0 && !whole {
			t.Errorf("a range of one stream was asked for: %s", r.Header.Get("Range"))
		}
		serveRange(w, r)
	}
	later := func(answer func(w http.ResponseWriter, from, to int)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if from, to, whole := span(r); from != 0 && !whole {
				answer(w, from, to)
				return
			}
			rest(w, r)
		}
	}
	shorter := func(w http.ResponseWriter, from, to int) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(large)))
		w.Header().Set("Content-Length", "10")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(large[from : from+10])
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"all are ignored", func(w http.ResponseWriter, _ *http.Request) { sendRange(w, 0, len(large), true) }},
		{"all are refused: 416", refuseRanges(http.StatusRequestedRangeNotSatisfiable)},
		{"all are refused: 400", refuseRanges(http.StatusBadRequest)},
		{"all are refused: 501", refuseRanges(http.StatusNotImplemented)},
		{"later ones are ignored", later(func(w http.ResponseWriter, _, _ int) { sendRange(w, 0, len(large), true) })},
		{"later ones are refused", later(func(w http.ResponseWriter, _, _ int) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) })},
		{"later ones are of other bytes", later(func(w http.ResponseWriter, from, to int) { sendRange(w, from-1, to-1, false) })},
		{"later ones are longer", later(func(w http.ResponseWriter, from, to int) { sendRange(w, from, len(large), false) })},
		{"later ones are shorter", later(shorter)},
		{"later ones are of a blob of another size", later(func(w http.ResponseWriter, from, to int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(large)+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(large[from:to])
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			lanes := smallLanes(3)
			s := serveHTTP(t, false, c.answer)
			b := open(t, Config{Lanes: lanes}, s.host()+"/app", Auth{}).Blob(t.Context(), largeDesc())
			got, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(got, large) {
				t.Errorf("%d bytes of %d, %v", len(got), len(large), err)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if !lanes.unused(3) {
				t.Error("not all lanes were given back")
			}
		})
	}
}

func refuseRanges(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(code)
			return
		}
		sendRange(w, 0, len(large), true)
	}
}

// TestPartsWithWrongBytes shows that after a wrong digest everything is asked for again as one stream, and that only then
// the endpoint is to blame.
func TestPartsWithWrongBytes(t *testing.T) {
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		from, to, whole := span(r)
		if from != 0 {
			from, to = from-16<<10, to-16<<10 // what it says is right, what it sends is not
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+16<<10, to+16<<10-1, len(large)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(large[from:to])
			return
		}
		sendRange(w, from, to, whole)
	})
	got, err := open(t, Config{Lanes: smallLanes(3)}, s.host()+"/app", Auth{}).ReadBlob(t.Context(), largeDesc(), 1<<20)
	if err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes of %d, %v", len(got), len(large), err)
	}
	if asked := s.seen("Range"); asked[len(asked)-1] != "" {
		t.Errorf("asked for %q", asked)
	}
}

// breakRange serves only the first bytes of a range of large, and breaks the connection.
func breakRange(w http.ResponseWriter, from, to, only int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(large)))
	w.Header().Set("Content-Length", fmt.Sprint(to-from))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(large[from : from+only])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func TestPartThatBreaksGoesOnElsewhere(t *testing.T) {
	good := serveHTTP(t, false, serveRange)
	broken := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		from, to, _ := span(r)
		if from == 0 {
			serveRange(w, r)
			return
		}
		breakRange(w, from, to, 1000)
	})
	cfg := hosts(t, "example.test", fmt.Sprintf("[host.%q]\n[host.%q]\n", broken.URL, good.URL))
	cfg.Lanes = smallLanes(3)
	b := open(t, cfg, "example.test/app", Auth{}).Blob(t.Context(), largeDesc())
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, large) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(large), err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	asked := good.seen("Range")
	if len(asked) != 12 || !slices.Contains(asked, "bytes=66536-81919") {
		t.Errorf("the other endpoint was asked for %q, want the rests of 12 parts", asked)
	}
	if b.Lost() == 0 {
		t.Error("no time was lost")
	}
}

func TestPartThatNobodyHas(t *testing.T) {
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if from, _, _ := span(r); from != 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		serveRange(w, r)
	})
	_, err := open(t, Config{Lanes: smallLanes(3)}, s.host()+"/app", Auth{}).ReadBlob(t.Context(), largeDesc(), 1<<20)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "bytes 65536-81919 of blob sha256:") {
		t.Errorf("%v", err)
	}
}
