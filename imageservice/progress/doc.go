// Package progress keeps account of pulls: what came, how fast, and which stage it waited for.
//
// A Book is the account of an image service, as Prometheus metrics (it is a collector) and as values for log lines. A Layer is
// the entry of one layer on its way from the registry to the store; the stages of the pipeline work side by side, so their
// times overlap, and the one that was busy the longest is what bounds the layer.
//
// It measures nothing itself and logs nothing. Concurrency: everything is safe; a Layer may be read while it is written.
package progress
