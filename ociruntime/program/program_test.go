package program

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sample uses every kind of argument and outcome once.
func sample() *Builder {
	b := New()
	end := b.NewLabel()
	fd := b.Call("open a file", unix.SYS_OPENAT, unix.AT_FDCWD, String("/a"), unix.O_RDONLY).Again().Tolerate(unix.ENOENT, unix.ENOTDIR).ElseTo(end).Keep()
	b.Call("read it", unix.SYS_READ, fd, Bytes(make([]byte, 16)), 16).Nonzero()
	b.Call("poll", unix.SYS_PPOLL, Struct{Data: make([]byte, 8), Words: []Word{{0, Pause{}}}}, 1, 0).Zero()
	b.Place(end)
	b.Call("duplicate", unix.SYS_DUP3, FD(2), 0, 0).TolerateAll()
	b.ExecAll([]string{"/x/sh", "/y/sh"}, Strings{"sh", "/a"}, Strings{"A=b"})
	return b
}

func TestText(t *testing.T) {
	p, err := sample().Build()
	if err != nil {
		t.Fatal(err)
	}
	want := `  0  $0 = openat(AT_FDCWD, "/a", 0) again | ENOENT or ENOTDIR -> 3  # open a file
  1  read($0, 00000000000000000000000000000000, 0x10) != 0  # read it
  2  ppoll({0000000000000000 +0:pause}, 1, 0) == 0  # poll
  3  dup3(fd[2], 0, 0) | any error  # duplicate
  4  execve("/x/sh", ["sh", "/a"], ["A=b"])  # execute /x/sh
  5  execve("/y/sh", ["sh", "/a"], ["A=b"])  # execute /y/sh
`
	if d := cmp.Diff(want, p.Text()); d != "" {
		t.Error(d)
	}
	if p.FDs() != 3 || p.Len() != 6 || p.Describe(3) != "duplicate" || p.Describe(6) != "instruction 6 of 6" {
		t.Errorf("FDs %d, Len %d, Describe %q, %q", p.FDs(), p.Len(), p.Describe(3), p.Describe(6))
	}
}

// The encoded form is what pause/src/program.h says: parts one after another, relocations ascending, everything inside.
func TestEncode(t *testing.T) {
	p, err := sample().Build()
	if err != nil {
		t.Fatal(err)
	}
	data := p.Encode()
	u32 := func(at int) int { return int(binary.NativeEndian.Uint32(data[at:])) }
	u16 := func(at int) int { return int(binary.NativeEndian.Uint16(data[at:])) }
	ninstr, nreloc, blob, slots, fds := u32(8), u32(12), u32(16), u32(20), u32(24)
	if u32(0) != magic || u32(4) != len(data) || ninstr != 6 || slots != 1 || fds != 3 || u32(28) != flagExecs {
		t.Errorf("header % x", data[:headerSize])
	}
	if len(data) != headerSize+ninstr*instrSize+nreloc*relocSize+blob {
		t.Fatalf("%d bytes do not add up: %d instructions, %d relocations, %d bytes of blob", len(data), ninstr, nreloc, blob)
	}
	first := headerSize
	if u32(first) != unix.SYS_OPENAT || u16(first+6) != 1 || u16(first+8) != int(unix.ENOENT) || u16(first+10) != int(unix.ENOTDIR) || u16(first+12) != 2 {
		t.Errorf("first instruction % x", data[first:first+instrSize])
	}
	last := 0
	for i := range nreloc {
		at := headerSize + ninstr*instrSize + i*relocSize
		instr, kind, where, target, value := u32(at), u16(at+4), u16(at+6), u32(at+8), u32(at+12)
		if instr < last || instr >= ninstr || kind > relocPause || where > whereWord32 {
			t.Errorf("relocation %d is % x", i, data[at:at+relocSize])
		}
		if where >= whereWord64 && (target%4 != 0 || target+4 > blob) || kind == relocBlob && value > blob {
			t.Errorf("relocation %d points outside the blob: % x", i, data[at:at+relocSize])
		}
		last = instr
	}
	if !strings.Contains(string(data[len(data)-blob:]), "/x/sh\x00") {
		t.Error("the blob lacks a path")
	}
}

func TestBuildErrors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		build func(*Builder)
		want  string
	}{
		{"seven arguments", func(b *Builder) { b.Call("x", 0, 1, 2, 3, 4, 5, 6, 7) }, "7 arguments"},
		{"unknown argument", func(b *Builder) { b.Call("x", 0, 1.5) }, "is a float64"},
		{"unknown word", func(b *Builder) { b.Call("x", 0, Struct{make([]byte, 8), []Word{{0, 7}}}) }, "is a int"},
		{"many descriptors", func(b *Builder) { b.Call("x", 0, FD(maxFDs)) }, "program of 1025 descriptors or more, at most 1024 are possible"},
		{"no descriptor", func(b *Builder) { b.Call("x", 0, FD(-1)) }, "descriptor -1 is none"},
		{"backwards", func(b *Builder) {
			l := b.NewLabel()
			b.Place(l)
			b.Call("x", 0).ThenTo(l)
		}, "skips to instruction 0"},
		{"never placed", func(b *Builder) { b.Call("x", 0).Tolerate(unix.EIO).ElseTo(b.NewLabel()) }, "skips to instruction -1"},
		{"no tolerated error", func(b *Builder) { b.Call("x", 0).Tolerate() }, "0 tolerated errors"},
		{"nothing to execute", func(b *Builder) { b.ExecAll(nil, nil, nil) }, "nothing to execute"},
		{"NUL", func(b *Builder) { b.Call("x", 0, String("a\x00")) }, "NUL"},
		{"too long", func(b *Builder) {
			for range maxInstr + 1 {
				b.Call("x", 0)
			}
		}, "8193 instructions, at most 8192"},
		{"too many results", func(b *Builder) {
			for range maxSlots + 1 {
				b.NewSlot()
			}
		}, "2049 results, at most 2048"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New()
			tt.build(b)
			if _, err := b.Build(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func BenchmarkBuildAndEncode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		p, err := sample().Build()
		if err != nil {
			b.Fatal(err)
		}
		_ = p.Encode()
	}
}
