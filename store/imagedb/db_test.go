package imagedb

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func image(n int, names ...string) Image {
	config, manifest := fmt.Appendf(nil, `{"config":%d}`, n), fmt.Appendf(nil, `{"manifest":%d}`, n)
	return Image{
		ID: digest.FromBytes(config), Config: config,
		ManifestDigest: digest.FromBytes(manifest), Manifest: manifest,
		Names: names, RepoDigests: []string{"r.io/a@" + digest.FromBytes(manifest).String()},
		DiffIDs:  []digest.Digest{digest.FromString("l1"), digest.FromString(fmt.Sprint("l", n))},
		Size:     int64(n + 1),
		PulledAt: time.Unix(1700000000, int64(n)).UTC(),
	}
}

func open(t testing.TB, path string) (*DB, Recovery) {
	t.Helper()
	db, recovery, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // the second Close of a database that a test closed itself
	return db, recovery
}

func closeDB(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, db *DB, imgs ...Image) {
	t.Helper()
	for _, img := range imgs {
		if err := db.Put(img); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPutReopenRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db, recovery := open(t, path)
	if diff := cmp.Diff(Recovery{}, recovery); diff != "" {
		t.Errorf("a new database: %s", diff)
	}
	a, b := image(1, "r.io/a:2", "r.io/a:1"), image(2)
	put(t, db, a, b)
	closeDB(t, db)

	db, recovery = open(t, path)
	if diff := cmp.Diff(Recovery{}, recovery); diff != "" {
		t.Error(diff)
	}
	a.Names = []string{"r.io/a:1", "r.io/a:2"}
	want := []*Image{&a, &b}
	slices.SortFunc(want, func(x, y *Image) int { return strings.Compare(string(x.ID), string(y.ID)) })
	if diff := cmp.Diff(want, db.Snapshot().Images()); diff != "" {
		t.Error(diff)
	}
	before := db.Snapshot()
	removed, err := db.Remove(a.ID)
	if err != nil || removed == nil || removed.ID != a.ID {
		t.Errorf("removed %v, %v", removed, err)
	}
	if again, err := db.Remove(a.ID); again != nil || err != nil {
		t.Errorf("removed again: %v, %v", again, err)
	}
	if before.ByID(a.ID) == nil || db.Snapshot().ByID(a.ID) != nil {
		t.Error("an old snapshot changed or the new one did not")
	}
	closeDB(t, db)
	db, _ = open(t, path)
	if diff := cmp.Diff([]*Image{&b}, db.Snapshot().Images()); diff != "" {
		t.Error(diff)
	}
}

func TestNamesMoveAndMerge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db, _ := open(t, path)
	a, b := image(1, "r.io/a:1", "r.io/a:2"), image(2, "r.io/a:2")
	put(t, db, a, b)
	again := image(1, "q.io/x:1")
	again.RepoDigests = []string{"q.io/x@" + again.ManifestDigest.String()}
	again.Pinned = true
	put(t, db, again)
	closeDB(t, db)
	db, _ = open(t, path)
	s := db.Snapshot()
	if diff := cmp.Diff([]string{"q.io/x:1", "r.io/a:1"}, s.ByID(a.ID).Names); diff != "" {
		t.Errorf("first image's names: %s", diff)
	}
	if diff := cmp.Diff([]string{"r.io/a:2"}, s.ByID(b.ID).Names); diff != "" {
		t.Errorf("second image's names: %s", diff)
	}
	if got := s.ByID(a.ID); len(got.RepoDigests) != 2 || !got.Pinned {
		t.Errorf("merged image: %+v", got)
	}
	for name, want := range map[string]digest.Digest{
		"r.io/a:1": a.ID, "r.io/a:2": b.ID, "q.io/x:1": a.ID, again.RepoDigests[0]: a.ID, b.RepoDigests[0]: b.ID,
	} {
		if got := s.ByName(name); got == nil || got.ID != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
	if s.ByName("r.io/none:1") != nil {
		t.Error("found a name that nobody has")
	}
}

func TestByPrefix(t *testing.T) {
	s := newSnapshot(map[digest.Digest]*Image{
		"sha256:aaa1": {ID: "sha256:aaa1"}, "sha256:aab2": {ID: "sha256:aab2"}, "sha256:c": {ID: "sha256:c"},
	})
	for _, c := range []struct {
		prefix, want string
		err          error
	}{
		{"aaa", "sha256:aaa1", nil}, {"sha256:aab", "sha256:aab2", nil}, {"aa", "", ErrAmbiguous}, {"sha256:aa", "", ErrAmbiguous},
		{"c", "sha256:c", nil}, {"b", "", nil}, {"d", "", nil}, {"", "", nil}, {"sha256:", "", nil}, {"sha512:aaa", "", nil},
	} {
		got, err := s.ByPrefix(c.prefix)
		if !errors.Is(err, c.err) || (got == nil) != (c.want == "") || got != nil && string(got.ID) != c.want {
			t.Errorf("%q: %v, %v; want %q, %v", c.prefix, got, err, c.want, c.err)
		}
	}
}

func TestPutRefusesBytesThatAreNotTheImages(t *testing.T) {
	db, _ := open(t, filepath.Join(t.TempDir(), "images.db"))
	for name, spoil := range map[string]func(*Image){
		"config":   func(i *Image) { i.Config = []byte("other") },
		"manifest": func(i *Image) { i.Manifest = nil },
		"id":       func(i *Image) { i.ID = "sha256:short" },
		"diff id":  func(i *Image) { i.DiffIDs = append(i.DiffIDs, "nonsense") },
	} {
		img := image(1)
		spoil(&img)
		if err := db.Put(img); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if n := len(db.Snapshot().Images()); n != 0 {
		t.Errorf("%d images are there", n)
	}
}

func TestSecondOpenerIsRefusedAndHarmsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db, _ := open(t, path)
	put(t, db, image(1))
	if _, _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v, want ErrInUse", err)
	}
	put(t, db, image(2))
	closeDB(t, db)
	db, _ = open(t, path)
	if n := len(db.Snapshot().Images()); n != 2 {
		t.Errorf("%d images, want 2", n)
	}
}

// sampleFile returns the bytes of a database with a history, what it holds, and all that it ever held: a damaged meta
// page brings the transaction before back.
func sampleFile(t testing.TB) (data []byte, now, ever map[digest.Digest]*Image) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sample.db")
	db, _ := open(t, path)
	ever = map[digest.Digest]*Image{}
	for n := range 12 {
		img := image(n, fmt.Sprint("r.io/a:", n%8))
		img.Config = bytes.Repeat(img.Config, 100)
		img.ID = digest.FromBytes(img.Config)
		put(t, db, img)
		ever[img.ID] = &img
		if n%4 == 3 {
			if _, err := db.Remove(img.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	now = db.Snapshot().table()
	closeDB(t, db)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, now, ever
}

// openDamaged opens data as a database, checks that it shows nothing but whole images and works, and tells whether the
// file was set aside.
func openDamaged(t *testing.T, data []byte, known map[digest.Digest]*Image, write bool) (images int, recovery Recovery) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "images.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, recovery, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDB(t, db)
	for _, img := range db.Snapshot().Images() {
		if known[img.ID] == nil || !bytes.Equal(known[img.ID].Config, img.Config) || !bytes.Equal(known[img.ID].Manifest, img.Manifest) {
			t.Fatalf("shows image %s, which was never stored so", img.ID)
		}
	}
	if aside, err := os.ReadFile(recovery.SetAside); (recovery.SetAside != "") != (err == nil && bytes.Equal(aside, data)) {
		t.Fatalf("set aside as %q: %v", recovery.SetAside, err)
	}
	if write {
		put(t, db, image(99, "r.io/new:1"))
		if _, err := db.Remove(image(99).ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return len(db.Snapshot().Images()), recovery
}

func TestAnyStateOfTheFileOpens(t *testing.T) {
	good, now, known := sampleFile(t)
	if n, r := openDamaged(t, good, now, false); n != len(now) || r.SetAside != "" || r.Dropped != nil {
		t.Fatalf("undamaged: %d of %d images, %+v", n, len(now), r)
	}
	if n, r := openDamaged(t, nil, known, true); n != 0 || r.SetAside != "" {
		t.Errorf("empty file: %d images, %+v", n, r)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, len(good))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for name, data := range map[string][]byte{"noise": noise, "zeroes": make([]byte, len(good)), "text": []byte("hello\n")} {
		if n, r := openDamaged(t, data, known, true); n != 0 || r.SetAside == "" || r.Cause == nil {
			t.Errorf("%s: %d images, %+v", name, n, r)
		}
	}
	for size := 1; size < len(good); size += 4093 {
		openDamaged(t, good[:size], known, true)
	}
	for range 50 { // a page that was never written
		bad := bytes.Clone(good)
		page := rng.IntN(len(bad)/4096) * 4096
		clear(bad[page : page+4096])
		openDamaged(t, bad, known, true)
	}
}

func TestFlippedBits(t *testing.T) {
	good, _, known := sampleFile(t)
	rng := rand.New(rand.NewPCG(3, 4))
	var noticed, opened int
	bad := bytes.Clone(good)
	for i := range bad {
		if i%4096 > 128 && i%5 != 0 || i%4096 > 512 && i%61 != 0 { // values, mostly: a sample is enough
			continue
		}
		bad[i] ^= 1 << rng.IntN(8)
		if checkData(bad) != nil {
			noticed++
		} else {
			opened++
			openDamaged(t, bad, known, i%3 == 0)
		}
		bad[i] = good[i]
	}
	if noticed < 500 || opened < 300 {
		t.Errorf("%d flips failed the check, %d went on to be opened: the sample file does not try both", noticed, opened)
	}
}

func TestDamagedValueDropsOneImageOnly(t *testing.T) {
	good, known, _ := sampleFile(t)
	victim := known[slices.Sorted(func(yield func(digest.Digest) bool) {
		for id := range known {
			if !yield(id) {
				return
			}
		}
	})[0]]
	bad := bytes.ReplaceAll(good, victim.Config, bytes.ToUpper(victim.Config))
	n, r := openDamaged(t, bad, known, true)
	if n != len(known)-1 || len(r.Dropped) != 1 || !strings.Contains(r.Dropped[0], string(victim.ID)) || r.SetAside != "" {
		t.Errorf("%d of %d images left, %+v", n, len(known), r)
	}
}

func TestManyImagesPassTheCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db, _ := open(t, path)
	db.bolt.NoSync = true // only here: the sizes matter, not the disk
	rng := rand.New(rand.NewPCG(5, 6))
	for n := range 600 {
		img := image(n, fmt.Sprint("r.io/a:", n))
		img.Config = bytes.Repeat(img.Config, 1+rng.IntN(900))
		img.ID = digest.FromBytes(img.Config)
		put(t, db, img)
		if n%3 == 0 {
			if _, err := db.Remove(db.Snapshot().Images()[rng.IntN(len(db.Snapshot().Images()))].ID); err != nil {
				t.Fatal(err)
			}
		}
		if n%50 == 0 {
			if err := check(path); err != nil {
				t.Fatalf("after %d images: %v", n, err)
			}
		}
	}
	want := len(db.Snapshot().Images())
	closeDB(t, db)
	db, r := open(t, path)
	if got := len(db.Snapshot().Images()); got != want || r.SetAside != "" {
		t.Errorf("%d images, want %d; %+v", got, want, r)
	}
}

func TestReadersNeverSeeHalfAChange(t *testing.T) {
	db, _ := open(t, filepath.Join(t.TempDir(), "images.db"))
	db.bolt.NoSync = true
	put(t, db, image(0, "r.io/a:1"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			s := db.Snapshot()
			owners := 0
			for _, img := range s.Images() {
				owners += len(img.Names)
			}
			if owners != 1 || s.ByName("r.io/a:1") == nil {
				t.Errorf("name has %d owners", owners)
				return
			}
		}
	})
	for n := range 200 {
		put(t, db, image(n%5, "r.io/a:1"))
	}
	close(done)
	wg.Wait()
}

func FuzzCheck(f *testing.F) {
	good, _, _ := sampleFile(f)
	f.Add(good, uint32(0), uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, value uint64) {
		bad := bytes.Clone(data)
		if int(at)+8 <= len(bad) {
			le.PutUint64(bad[at:], value)
		}
		_ = checkData(bad) // must return, without a fault and soon
	})
}

func BenchmarkPut(b *testing.B) {
	db, _ := open(b, filepath.Join(b.TempDir(), "images.db"))
	img := image(1, "r.io/a:1")
	for b.Loop() {
		put(b, db, img)
	}
}

// Documents of several pulls add up, each once, up to a bound; none is very large.
func TestDocuments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db, _ := open(t, path)
	one := image(1, "r.io/a:1")
	one.Documents = [][]byte{[]byte("first"), []byte("first"), make([]byte, MaxDocument+1)}
	put(t, db, one)
	one.Documents = [][]byte{[]byte("second")}
	put(t, db, one)
	closeDB(t, db)
	db, _ = open(t, path)
	if got := db.Snapshot().ByID(one.ID).Documents; len(got) != 2 || string(got[0]) != "second" || string(got[1]) != "first" {
		t.Errorf("got %q", got)
	}
	for i := range 2 * maxDocuments {
		one.Documents = [][]byte{fmt.Append(nil, i)}
		put(t, db, one)
	}
	if got := db.Snapshot().ByID(one.ID).Documents; len(got) != maxDocuments || string(got[0]) != "15" {
		t.Errorf("got %q", got)
	}
}
