package cri

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// encodings remember the items of a list as they are on the wire. What is listed are immutable values: each is encoded
// once, and a list of all that did not change since it was last asked for is there already. All lists have their items in
// field 1.
type encodings[T any] struct {
	translate func(*T) proto.Message
	last      atomic.Pointer[encoded[T]] // the last whole list; nil: none yet
}

// encoded is a whole list. It is immutable.
type encoded[T any] struct {
	items  []*T
	text   []byte
	pieces map[*T][]byte // of text
}

const itemsField = 1

// fill gives response, which must be empty, the items. It is marshalled as if they were in their field, where nobody in this
// process sees them. whole says that there are no others: what is not among them is forgotten.
func (e *encodings[T]) fill(response proto.Message, items []*T, whole bool) error {
	last := e.last.Load()
	if last == nil {
		last = &encoded[T]{}
	}
	if whole && slices.Equal(items, last.items) {
		response.ProtoReflect().SetUnknown(last.text)
		return nil
	}
	pieces, size := make([][]byte, len(items)), 0
	for i, item := range items {
		piece, known := last.pieces[item]
		if !known {
			var err error
			if piece, err = e.encode(item); err != nil {
				return err
			}
		}
		pieces[i] = piece
		size += len(piece)
	}
	next := &encoded[T]{items: items, text: make([]byte, 0, size)}
	for _, piece := range pieces {
		next.text = append(next.text, piece...)
	}
	response.ProtoReflect().SetUnknown(next.text)
	if whole {
		next.pieces = make(map[*T][]byte, len(items))
		rest := next.text
		for i, item := range items { // the earlier text is not held by what stays
			next.pieces[item], rest = rest[:len(pieces[i]):len(pieces[i])], rest[len(pieces[i]):]
		}
		e.last.Store(next)
	}
	return nil
}

// encode is an item with its tag and length.
func (e *encodings[T]) encode(item *T) ([]byte, error) {
	text, err := proto.Marshal(e.translate(item))
	if err != nil {
		return nil, err
	}
	piece := make([]byte, 0, protowire.SizeTag(itemsField)+protowire.SizeBytes(len(text)))
	return protowire.AppendBytes(protowire.AppendTag(piece, itemsField, protowire.BytesType), text), nil
}

// encodedOnce remembers messages made of immutable values, each as long as somebody has its value. To marshal such a message is to
// copy its text: nobody in this process sees more of it.
type encodedOnce[T any, M proto.Message] struct {
	translate func(*T) M
	known     sync.Map // of weak.Pointer[T] to M
}

// of is the message of a value. Nobody changes it.
func (e *encodedOnce[T, M]) of(value *T) (M, error) {
	key := weak.Make(value)
	if m, known := e.known.Load(key); known {
		return m.(M), nil
	}
	translated := e.translate(value)
	text, err := proto.Marshal(translated)
	if err != nil {
		return translated, err
	}
	m := translated.ProtoReflect().New()
	m.SetUnknown(text)
	if _, known := e.known.LoadOrStore(key, m.Interface()); !known {
		runtime.AddCleanup(value, func(key weak.Pointer[T]) { e.known.Delete(key) }, key)
	}
	return m.Interface().(M), nil
}

// all are the messages of values.
func (e *encodedOnce[T, M]) all(values []*T) ([]M, error) {
	messages := make([]M, len(values))
	for i, value := range values {
		var err error
		if messages[i], err = e.of(value); err != nil {
			return nil, err
		}
	}
	return messages, nil
}
