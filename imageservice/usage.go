package imageservice

// Usage is what images take of their file system.
type Usage struct {
	Mountpoint string // a directory on it
	Bytes      uint64
	Inodes     uint64
}

// Usage adds up what was measured when the layers were unpacked; nothing is walked.
func (s *Service) Usage() Usage {
	u := Usage{Mountpoint: s.cfg.Dir}
	for _, l := range s.layers.List() {
		u.Bytes += uint64(l.Bytes)
		u.Inodes += uint64(l.Inodes)
	}
	return u
}
