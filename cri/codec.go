package cri

import (
	"strings"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's of protobuf, but for answers that encodings have filled: they are sent from where they are, without a copy.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal gives what is in v as it is on the wire. Nobody changes it.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(proto.Message); ok {
		text := m.ProtoReflect().GetUnknown()
		if len(text) > 0 && proto.Size(m) == len(text) { // there is nothing else in it
			return mem.BufferSlice{mem.SliceBuffer(text)}, nil
		}
	}
	return c.CodecV2.Marshal(v)
}

// valid is text of others as an answer can carry it, which must be UTF-8 or is not sent at all.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
