package metrics

import (
	"google.golang.org/protobuf/encoding/protowire"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An answer has thousands of metrics, of which little but the values is new. They are written as they are on the wire, into
// the message that has them, where nobody in this process sees them; as messages they would be most of what a list costs.

// Fields of the messages.
const (
	metricsField   = 2 // of PodSandboxMetrics and ContainerMetrics
	nameField      = 1 // of Metric, from here on
	timestampField = 2
	typeField      = 3
	labelsField    = 4
	valueField     = 5
	numberField    = 1 // of UInt64Value
)

// writer collects metrics of one container, or of one pod.
type writer struct {
	base []byte // labels that all have, as they are on the wire
	head []byte // name and type of the row of the metrics that are added
	at   int64  // and their timestamp; 0: they are of this moment
	text []byte
}

// newWriter makes a writer of metrics that all have these values of base.
func newWriter(labels []string, room int) *writer {
	w := &writer{}
	for _, value := range labels {
		w.base = appendLabel(w.base, value)
	}
	w.text = make([]byte, 0, room*(len(w.base)+usualRest))
	return w
}

// usualRest is what a metric needs besides the labels that all have.
const usualRest = 80

// add adds a value.
func (w *writer) add(value uint64, labels ...string) {
	size := len(w.head) + len(w.base) + 2
	for _, label := range labels {
		size += 1 + protowire.SizeBytes(len(label))
	}
	if w.at != 0 {
		size += 1 + protowire.SizeVarint(uint64(w.at))
	}
	if value != 0 {
		size += 1 + protowire.SizeVarint(value)
	}
	text := protowire.AppendVarint(appendTag(w.text, metricsField, protowire.BytesType), uint64(size))
	text = append(text, w.head...)
	if w.at != 0 {
		text = protowire.AppendVarint(appendTag(text, timestampField, protowire.VarintType), uint64(w.at))
	}
	text = append(text, w.base...)
	for _, label := range labels {
		text = appendLabel(text, label)
	}
	text = appendTag(text, valueField, protowire.BytesType)
	if value == 0 {
		text = append(text, 0)
	} else {
		text = append(text, byte(1+protowire.SizeVarint(value)))
		text = protowire.AppendVarint(appendTag(text, numberField, protowire.VarintType), value)
	}
	w.text = text
}

// What metrics begin with, for each row.
var (
	containerHeads = heads(containerRows, func(r *containerRow) *description { return &r.description })
	networkHeads   = heads(networkRows, func(r *networkRow) *description { return &r.description })
)

// heads are name and type of the rows.
func heads[R any](rows []R, of func(*R) *description) [][]byte {
	all := make([][]byte, len(rows))
	for i := range rows {
		d := of(&rows[i])
		head := protowire.AppendString(appendTag(nil, nameField, protowire.BytesType), d.name)
		if d.kind != runtimev1.MetricType_COUNTER { // which is 0
			head = protowire.AppendVarint(appendTag(head, typeField, protowire.VarintType), uint64(d.kind))
		}
		all[i] = head
	}
	return all
}

func appendLabel(text []byte, value string) []byte {
	return protowire.AppendString(appendTag(text, labelsField, protowire.BytesType), value)
}

// appendTag appends the tag of a field with a number below 16, which is one byte.
func appendTag(text []byte, field protowire.Number, t protowire.Type) []byte {
	return append(text, byte(protowire.EncodeTag(field, t)))
}
