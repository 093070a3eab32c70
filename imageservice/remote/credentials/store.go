package credentials

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Config says where credentials are. Zero numbers mean the defaults beside them.
type Config struct {
	File          string        // of docker's form; empty: none. One that is absent is empty
	HelperTimeout time.Duration // 15 s
}

// Store finds credentials.
type Store struct {
	cfg Config

	mu     sync.Mutex
	seen   stamp
	parsed *file // of seen
}

// stamp tells one content of a file from the next.
type stamp struct {
	dev, ino uint64
	size     int64
	modified time.Time
	changed  syscall.Timespec
}

// New reads nothing yet.
func New(cfg Config) *Store {
	if cfg.HelperTimeout == 0 {
		cfg.HelperTimeout = 15 * time.Second
	}
	return &Store{cfg: cfg}
}

// Find returns what the file has for a repository at host[:port], which is nothing if it is silent about it.
func (s *Store) Find(ctx context.Context, host, repository string) (Credential, error) {
	f, err := s.file()
	if err != nil || f == nil {
		return Credential{}, err
	}
	server := host
	if SameRegistry(host, dockerHub[0]) {
		server = hubServer
	}
	helpers := []string{f.CredsStore}
	if key, found := best(f.CredHelpers, host, repository); found {
		helpers = []string{f.CredHelpers[key], f.CredsStore}
	}
	for _, name := range helpers {
		if name == "" {
			continue
		}
		c, err := s.ask(ctx, name, server)
		if err != nil || !c.Anonymous() {
			return c, err
		}
	}
	key, found := best(f.Auths, host, repository)
	if !found {
		return Credential{}, nil
	}
	c, err := f.Auths[key].credential()
	if err != nil {
		return Credential{}, fmt.Errorf("credentials file %s: auths[%q]: %w", s.cfg.File, key, err)
	}
	c.Origin = s.cfg.File
	return c, nil
}

// Check says what is wrong with the file as it is now, of its entries too. No helper is asked.
func (s *Store) Check() error {
	f, err := s.file()
	if err != nil || f == nil {
		return err
	}
	var faults []error
	for _, key := range slices.Sorted(maps.Keys(f.Auths)) {
		if _, err := f.Auths[key].credential(); err != nil {
			faults = append(faults, fmt.Errorf("credentials file %s: auths[%q]: %w", s.cfg.File, key, err))
		}
	}
	for _, name := range append([]string{f.CredsStore}, slices.Sorted(maps.Values(f.CredHelpers))...) {
		if _, err := program(name); name != "" && err != nil {
			faults = append(faults, fmt.Errorf("credentials file %s: %w", s.cfg.File, err))
		}
	}
	return errors.Join(faults...)
}

// file returns the content, nil if there is none.
func (s *Store) file() (*file, error) {
	if s.cfg.File == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.Open(s.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	defer func() { _ = f.Close() }() // was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	st := info.Sys().(*syscall.Stat_t)
	now := stamp{st.Dev, st.Ino, st.Size, info.ModTime(), st.Ctim}
	if s.parsed != nil && s.seen == now {
		return s.parsed, nil
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("credentials file %s: not a regular file of at most %d bytes", s.cfg.File, maxFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	parsed, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("credentials file %s: %w", s.cfg.File, err)
	}
	s.seen, s.parsed = now, parsed
	return parsed, nil
}
