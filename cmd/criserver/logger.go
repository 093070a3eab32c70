package main

import (
	"fmt"
	"io"
	"log/slog"
)

// newLogger returns the logger of a configuration that validate has passed. level is set, and followed from then on.
func newLogger(w io.Writer, c Log, level *slog.LevelVar) (*slog.Logger, error) {
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}
