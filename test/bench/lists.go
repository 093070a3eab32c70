package main

import (
	"context"
	"fmt"
	"time"

	"github.com/criserver/criserver/test/bench/lists"
)

// listTarget is what lists and statuses may take with listContainers containers, in 99 of 100 cases.
const (
	listTarget     = 2 * time.Millisecond
	listContainers = 1000
)

// measureLists asks for lists and statuses with 100 containers, and criserver with listContainers, too.
func measureLists(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading("CRI: lists and statuses, until the client has the answer, ms")
	t := table{header: []string{"", "containers", "request", "parallel", "p50", "p99", "its CPU p50", "CPU p99", "decoded p50", "decoded p99", "bytes", "requests/s"}}
	var whole results    // the 99th percentiles of each
	var many []lists.Row // ours with listContainers, one request at a time
	for _, d := range all {
		counts := []int{100}
		if d.name == ours && !b.quick {
			counts = append(counts, listContainers)
		}
		for _, n := range counts {
			r, err := lists.Measure(ctx, d.conn, lists.Options{Image: d.image, Parent: d.parent, Pods: n / 50, Containers: n, Requests: b.rounds(1000), Parallel: []int{1, 8}, CPU: d.cpuTime})
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			for _, row := range r.Rows {
				t.add(d.name, fmt.Sprint(n), row.Request, fmt.Sprint(row.Parallel), ms(row.Answered.P50), ms(row.Answered.P99), ms(row.CPU.P50), ms(row.CPU.P99), ms(row.Decoded.P50), ms(row.Decoded.P99), fmt.Sprint(row.Bytes), fmt.Sprintf("%.0f", row.RequestsASecond))
				if row.Parallel != 1 {
					continue
				}
				if row.Request == lists.Whole {
					whole.add(d.name, lap{fmt.Sprint(n), row.Answered.P99})
				}
				if n == listContainers {
					many = append(many, row)
				}
			}
		}
	}
	t.print()
	b.compareDaemons("ListContainers p99, 100 containers", whole, "100", noTarget)
	for _, row := range many {
		b.ratio(fmt.Sprintf("CRI: %s p99, %d containers / target", row.Request, listContainers), ms(row.Answered.P99)+" ms", "target "+ms(listTarget)+" ms",
			float64(row.Answered.P99)/float64(listTarget), 1)
	}
	return nil
}
