package cri

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

const (
	// batchBytes bounds the items of one message of a streamed list: less than any client's limit, and all that one that
	// stops reading holds. An item that is larger travels alone.
	batchBytes = 1 << 20
	// itemOverhead is what a message needs for an item beside it: its tag and its length.
	itemOverhead = 6
)

// sendBatches sends items in lists of at least one; without items it sends nothing. It ends with send's first error.
func sendBatches[T proto.Message](items iter.Seq[T], send func([]T) error) error {
	var batch []T
	size := 0
	for item := range items {
		n := proto.Size(item) + itemOverhead
		if len(batch) > 0 && size+n > batchBytes {
			if err := send(batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
		batch, size = append(batch, item), size+n
	}
	if len(batch) == 0 {
		return nil
	}
	return send(batch)
}
