package layer

import (
	"errors"
	"fmt"

	"github.com/criserver/criserver/store/layer/quota"
)

// firstProject is the lowest number of a project that counts a writable directory; the kubelet's begin at 2^20.
const firstProject = 1 << 30

// ErrNoQuota says that the file system cannot limit writable directories.
var ErrNoQuota = errors.New("file system cannot limit directories (project quotas: ext4 and XFS mounted with prjquota)")

// openQuota finds out whether the file system counts.
func (s *Store) openQuota() (err error) {
	s.quota, err = quota.Open(s.path("containers"))
	if err != nil && !errors.Is(err, quota.ErrNone) {
		return err
	}
	if s.config.WritableLimit > 0 && (s.quota == nil || !s.quota.Enforces()) {
		return fmt.Errorf("limit of %d bytes: %w", s.config.WritableLimit, ErrNoQuota)
	}
	return nil
}

// takeProject gives a container a project that holds nothing, 0 where none counts. It is recorded before it is used.
func (s *Store) takeProject(container string) (uint32, error) {
	if s.quota == nil {
		return 0, nil
	}
	for try := uint32(firstProject); ; try++ {
		project := s.reserveProject(container, try)
		if _, inodes, err := s.quota.Usage(project); err != nil {
			return 0, err
		} else if inodes == 0 {
			return project, s.quota.Limit(project, uint64(s.config.WritableLimit)) // also takes a former one away
		}
		try = project // of other files, or of what is being deleted
	}
}

// reserveProject gives the container the first project from at on that no other has.
func (s *Store) reserveProject(container string, at uint32) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := make(map[uint32]bool, len(s.projects))
	for c, p := range s.projects {
		taken[p] = c != container
	}
	for taken[at] {
		at++
	}
	s.projects[container] = at
	return at
}

// freeProject lets the project of a container go, or of a removed root, if there is one; its files are deleted. Its limit goes first: then
// the number may be another's.
func (s *Store) freeProject(of string) (err error) {
	s.mu.Lock()
	project := s.projects[of]
	s.mu.Unlock()
	if project != 0 && s.config.WritableLimit > 0 {
		err = s.quota.Limit(project, 0)
	}
	s.mu.Lock()
	delete(s.projects, of)
	s.mu.Unlock()
	return err
}

// Written is what the writable directory of a container holds now, the kernel's own files in it included. It is not ok if
// the file system does not count.
func (s *Store) Written(container string) (bytes, inodes uint64, ok bool) {
	s.mu.Lock()
	project, ok := s.projects[container]
	s.mu.Unlock()
	if !ok {
		return 0, 0, false
	}
	bytes, inodes, err := s.quota.Usage(project)
	return bytes, inodes, err == nil
}
