package cri

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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
	items    []*T
	text     []byte
	messages map[*T]protoreflect.Message // each has its part of text, and to marshal it is to copy that
}

const itemsField = 1

// fill gives response, which must be empty, the items. It is marshalled as if they were in their field, where nobody in this
// process sees them. whole says that there are no others: what is not among them is forgotten.
func (e *encodings[T]) fill(response proto.Message, items []*T, whole bool) error {
	last := e.last.Load()
	if last == nil {
		last = &encoded[T]{}
	}
	m := response.ProtoReflect()
	if !whole {
		list := m.Mutable(m.Descriptor().Fields().ByNumber(itemsField)).List()
		for _, item := range items {
			one, known := last.messages[item]
			if !known {
				one = e.translate(item).ProtoReflect()
			}
			list.Append(protoreflect.ValueOfMessage(one))
		}
		return nil
	}
	if !slices.Equal(items, last.items) {
		var err error
		if last, err = e.encode(items, last); err != nil {
			return err
		}
		e.last.Store(last)
	}
	m.SetUnknown(last.text)
	return nil
}

// encode makes a whole list. The text of the earlier one is not held by what stays.
func (e *encodings[T]) encode(items []*T, earlier *encoded[T]) (*encoded[T], error) {
	var kind protoreflect.MessageType // of all of them
	texts, size := make([][]byte, len(items)), 0
	for i, item := range items {
		m, known := earlier.messages[item]
		if known {
			texts[i] = m.GetUnknown()
		} else {
			translated := e.translate(item)
			var err error
			if texts[i], err = proto.Marshal(translated); err != nil {
				return nil, err
			}
			m = translated.ProtoReflect()
		}
		kind = m.Type()
		size += protowire.SizeTag(itemsField) + protowire.SizeBytes(len(texts[i]))
	}
	next := &encoded[T]{items: items, text: make([]byte, 0, size), messages: make(map[*T]protoreflect.Message, len(items))}
	for i, item := range items {
		next.text = protowire.AppendBytes(protowire.AppendTag(next.text, itemsField, protowire.BytesType), texts[i])
		end := len(next.text)
		m := kind.New()
		m.SetUnknown(next.text[end-len(texts[i]) : end : end])
		next.messages[item] = m
	}
	return next, nil
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
