package inflate

import (
	"bytes"
	stdflate "compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// contents are of all kinds that compressors treat in their own way.
func contents() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 100<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var skewed []byte // bytes as rare as Fibonacci numbers have it: codes of all lengths
	for a, b, c := 1, 1, byte(0); len(skewed) < 100<<10; a, b, c = b, a+b, c+1 {
		skewed = append(skewed, bytes.Repeat([]byte{c}, a)...)
	}
	r.Shuffle(len(skewed), func(i, j int) { skewed[i], skewed[j] = skewed[j], skewed[i] })
	var words, far []byte
	for len(words) < 250<<10 {
		words = fmt.Appendf(words, "%x ", r.ExpFloat64()*1000)
	}
	for range 7 { // matches from as far back as there can be
		far = append(far, noise[:32<<10]...)
	}
	all := map[string][]byte{"nothing": nil, "one byte": {7}, "zeros": make([]byte, 400<<10), "noise": noise, "skewed": skewed, "words": words, "far": far}
	for period := 2; period < 20; period++ {
		all[fmt.Sprintf("period %d", period)] = bytes.Repeat(noise[:period], 2000)
	}
	return all
}

// compressors are named ways to make a gzip stream.
func compressors(t testing.TB) map[string]func([]byte) []byte {
	all := map[string]func([]byte) []byte{}
	for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, 1, 4, 6, 9} {
		all[fmt.Sprintf("standard %d", level)] = func(p []byte) []byte {
			var b bytes.Buffer
			w, err := stdgzip.NewWriterLevel(&b, level)
			return written(t, &b, w, err, p)
		}
		all[fmt.Sprintf("klauspost %d", level)] = func(p []byte) []byte {
			var b bytes.Buffer
			w, err := gzip.NewWriterLevel(&b, level)
			return written(t, &b, w, err, p)
		}
	}
	all["members"] = func(p []byte) (out []byte) {
		for part := range chunks(p, 100<<10) {
			out = append(out, all["standard 6"](part)...)
		}
		return out
	}
	all["flushed"] = func(p []byte) []byte {
		var b bytes.Buffer
		w := stdgzip.NewWriter(&b)
		w.Name, w.Comment, w.Extra = "name", "comment", make([]byte, 3000)
		for part := range chunks(p, 10<<10) {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		return written(t, &b, w, nil, nil)
	}
	return all
}

func written(t testing.TB, b *bytes.Buffer, w io.WriteCloser, err error, p []byte) []byte {
	t.Helper()
	if err == nil {
		_, err = w.Write(p)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// chunks yields p in pieces, at least one.
func chunks(p []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for {
			n := min(size, len(p))
			if !yield(p[:n]) || n == len(p) {
				return
			}
			p = p[n:]
		}
	}
}

// read is what a Reader makes of a stream.
func read(src io.Reader) ([]byte, error) {
	r, err := NewReader(src)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestContentsComeBack(t *testing.T) {
	all := contents()
	for name, compress := range compressors(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for kind, want := range all {
				packed := compress(want)
				if got, err := read(bytes.NewReader(packed)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes of %d, %v", kind, len(got), len(want), err)
				}
				if got, err := read(iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(packed)))); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s in halves: %d bytes of %d, %v", kind, len(got), len(want), err)
				}
			}
		})
	}
}

// TestBytewise reads from a source, and into a buffer, of one byte at a time.
func TestBytewise(t *testing.T) {
	want := contents()["words"][:40_000]
	r, err := NewReader(iotest.OneByteReader(bytes.NewReader(compressors(t)["members"](want))))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(iotest.OneByteReader(r)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

// TestStreamThatEndsTooEarly cuts a stream at every byte.
func TestStreamThatEndsTooEarly(t *testing.T) {
	for name, want := range map[string][]byte{"coded": contents()["words"][:5000], "stored": contents()["noise"][:3000], "fixed": []byte("abc")} {
		packed := compressors(t)["flushed"](want)
		for n := 1; n < len(packed); n++ {
			got, err := read(bytes.NewReader(packed[:n]))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: %d of %d bytes give %d, %v", name, n, len(packed), len(got), err)
			}
		}
	}
	if _, err := NewReader(strings.NewReader("")); err != io.EOF {
		t.Errorf("an empty stream: %v", err)
	}
}

// TestSourceThatFails expects its error, and not one about the stream.
func TestSourceThatFails(t *testing.T) {
	packed := compressors(t)["standard 6"](contents()["noise"])
	failure := errors.New("unplugged")
	_, err := read(io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(failure)))
	if !errors.Is(err, failure) {
		t.Error(err)
	}
}

func TestStreamsThatAreWrong(t *testing.T) {
	good := compressors(t)["standard 6"]([]byte("some text, some text"))
	change := func(at int, to byte) []byte {
		bad := bytes.Clone(good)
		bad[(at+len(bad))%len(bad)] ^= to
		return bad
	}
	deflated := func(b ...byte) []byte { return append(bytes.Clone(good[:10]), append(b, make([]byte, 20)...)...) }
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"not gzip":               {[]byte("0123456789abcdef"), ErrHeader},
		"another method":         {change(2, 1), ErrHeader},
		"checksum":               {change(-8, 1), ErrChecksum},
		"length":                 {change(-1, 1), ErrChecksum},
		"garbage behind":         {append(bytes.Clone(good), "garbage behind it"...), ErrHeader},
		"header with a bad sum":  {append([]byte{0x1f, 0x8b, 8, flagHeaderCRC, 0, 0, 0, 0, 0, 0, 1, 2}, good[10:]...), ErrHeader},
		"name without an end":    {append([]byte{0x1f, 0x8b, 8, flagName, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte("x"), 2000)...), ErrHeader},
		"block of a fourth kind": {deflated(0b111), errCorrupt},
		"stored length":          {deflated(0b001, 1, 0, 1, 0), errCorrupt},
		"match before the begin": {deflated(0b11, 0b10), errCorrupt},
		"287 symbols":            {deflated(0b11110_101, 0), errCorrupt},
		"31 distances":           {deflated(0b00000_101, 0b11110), errCorrupt},
		"no code for lengths":    {deflated(0b101, 0), errCorrupt},
	} {
		if got, err := read(bytes.NewReader(c.stream)); !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestHistoryEndsWithTheMember refuses a match that reaches into the member before.
func TestHistoryEndsWithTheMember(t *testing.T) {
	var b bytes.Buffer
	w, err := stdflate.NewWriterDict(&b, 9, []byte("the text of the first member"))
	deflated := written(t, &b, w, err, []byte("the text of the first member"))
	stream := append(compressors(t)["standard 6"]([]byte("the text of the first member")), sealed(deflated, []byte("the text of the first member"))...)
	if got, err := read(bytes.NewReader(stream)); !errors.Is(err, errCorrupt) {
		t.Errorf("%q, %v", got, err)
	}
}

// sealed makes a member of a deflate stream.
func sealed(deflated, plain []byte) []byte {
	out := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	out = le.AppendUint32(out, crc32.ChecksumIEEE(plain))
	return le.AppendUint32(out, uint32(len(plain)))
}

// FuzzReader compares with the standard library: the same content, and an error when that has one.
func FuzzReader(f *testing.F) {
	for _, compress := range compressors(f) {
		f.Add(compress([]byte(strings.Repeat("some text and 0123456789", 20))))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		sameAsStandard(t, stream)
		rest := bytes.NewReader(stream)
		deflate := io.LimitReader(stdflate.NewReader(rest), 4<<20)
		plain, err := io.ReadAll(deflate)
		if err != nil {
			sameAsStandard(t, sealed(stream, nil))
			return
		}
		sameAsStandard(t, sealed(stream[:len(stream)-rest.Len()], plain))
	})
}

func sameAsStandard(t *testing.T, stream []byte) {
	t.Helper()
	var want []byte
	z, wantErr := stdgzip.NewReader(bytes.NewReader(stream))
	if wantErr == nil {
		want, wantErr = io.ReadAll(io.LimitReader(z, 4<<20))
	}
	if len(want) == 4<<20 {
		return
	}
	got, err := read(bytes.NewReader(stream))
	if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; the standard library: %d bytes, %v", len(got), err, len(want), wantErr)
	}
}

// BenchmarkReader compares with klauspost/compress, in processor time too.
func BenchmarkReader(b *testing.B) {
	all := contents()
	for _, kind := range []string{"words", "skewed", "noise", "zeros"} {
		plain := bytes.Repeat(all[kind], 50)
		packed := compressors(b)["standard 6"](plain)
		for name, open := range map[string]func(io.Reader) (io.Reader, error){
			"ours":      func(r io.Reader) (io.Reader, error) { return NewReader(r) },
			"klauspost": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		} {
			b.Run(kind+" "+name, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				began := cpuTime(b)
				for b.Loop() {
					r, err := open(bytes.NewReader(packed))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, r); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(plain))*float64(b.N)/1e6/(cpuTime(b)-began).Seconds(), "MB/cpu-s")
			})
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
