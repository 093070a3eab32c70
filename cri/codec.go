package cri

import (
	"math/bits"
	"strings"
	"sync"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's of protobuf, but for two kinds of answers. Those that encodings have filled are sent from where they are, without a
// copy. Large ones are marshalled into buffers of our own: gRPC's for more than 32 KiB have 1 MiB, which is cleared for each.
type codec struct {
	encoding.CodecV2
	buffers *buffers
}

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name), &buffers{}} }

// Marshal gives what is in v as it is on the wire. Nobody changes it.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(m)
	if text := m.ProtoReflect().GetUnknown(); len(text) > 0 && size == len(text) { // there is nothing else in it
		return mem.BufferSlice{mem.SliceBuffer(text)}, nil
	}
	if mem.IsBelowBufferPoolingThreshold(size) {
		return c.CodecV2.Marshal(v)
	}
	buffer := c.buffers.Get(size)
	if _, err := (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend((*buffer)[:0], m); err != nil {
		c.buffers.Put(buffer)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buffer, c.buffers)}, nil
}

// buffers are used again, and not cleared: who gets one writes all of it. There is a pool for each power of two.
type buffers [largestBuffer + 1]sync.Pool

const largestBuffer = 22 // 4 MiB; larger ones are left to the garbage collection

// Get gives a buffer of size, which is not 0.
func (b *buffers) Get(size int) *[]byte {
	class := bits.Len(uint(size - 1))
	if class > largestBuffer {
		buffer := make([]byte, size)
		return &buffer
	}
	if buffer, ok := b[class].Get().(*[]byte); ok {
		*buffer = (*buffer)[:size]
		return buffer
	}
	buffer := make([]byte, size, 1<<class)
	return &buffer
}

// Put takes back what Get gave.
func (b *buffers) Put(buffer *[]byte) {
	if class := bits.Len(uint(cap(*buffer) - 1)); class <= largestBuffer && cap(*buffer) == 1<<class {
		b[class].Put(buffer)
	}
}

// valid is text of others as an answer can carry it, which must be UTF-8 or is not sent at all.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
