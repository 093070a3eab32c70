package main

import (
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/imageservice/progress"
)

func TestMetricsAreServed(t *testing.T) {
	var said strings.Builder
	config := defaultConfig()
	config.Metrics.Address = "127.0.0.1:0"
	n := &node{config: config, log: slog.New(slog.NewTextHandler(&said, nil))}
	if err := n.assembleMetrics(progress.NewBook()); err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`http://[^ \n]*`).FindString(said.String())
	get := func(url string) (int, string) {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "of_a_later_part", Help: "x"})
	if err := n.measure(counter); err != nil {
		t.Fatal(err)
	}
	code, text := get(url)
	for _, want := range []string{"criserver_image_pulls_total{result=\"ok\"} 0\n", "criserver_image_stage_seconds_total{stage=\"inflate\"} 0\n",
		"criserver_image_layers_waiting 0\n", "of_a_later_part 0\n", "go_goroutines ", "process_resident_memory_bytes "} {
		if code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%d, the metrics do not have %q", code, want)
		}
	}
	if code, _ := get(strings.TrimSuffix(url, "metrics")); code != http.StatusNotFound {
		t.Errorf("other pages: %d", code)
	}
	if err := n.close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := http.Get(url); err == nil {
		t.Error("they are served after the end")
	}
}

func TestMetricsOfAnAddressInUse(t *testing.T) {
	var said strings.Builder
	n := &node{log: slog.New(slog.NewTextHandler(&said, nil))}
	n.config.Metrics.Address = "127.0.0.1:0"
	if err := n.assembleMetrics(); err != nil {
		t.Fatal(err)
	}
	defer n.close(t.Context())
	second := &node{log: n.log}
	second.config.Metrics.Address = regexp.MustCompile(`127[^/]*`).FindString(said.String())
	if err := second.assembleMetrics(); err == nil || !strings.Contains(err.Error(), "metrics.address: ") {
		t.Errorf("%v", err)
	}
}
