package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/store/record"
)

// Names in a pod's directory.
const (
	podRecordName   = "record"
	containerPrefix = "c-" // and the container's id
)

// podRecord is a pod on disk. It outlives upgrades: a field may be added, none may change its meaning.
type podRecord struct {
	ID          ID              `json:"id"`
	BootID      string          `json:"bootID"`
	Phase       podPhase        `json:"phase"`
	Fingerprint string          `json:"fingerprint"`
	Handler     string          `json:"handler,omitempty"`
	Gives       json.RawMessage `json:"gives,omitempty"` // specgen.Handler
	CreatedAt   time.Time       `json:"createdAt"`
	Doomed      bool            `json:"doomed,omitempty"`
	IPs         []netip.Addr    `json:"ips,omitempty"`
	Level       string          `json:"selinuxLevel,omitempty"`
	Overhead    []byte          `json:"overhead,omitempty"` // this and the next: runtimev1.LinuxContainerResources, marshalled, if Updated
	Resources   []byte          `json:"resources,omitempty"`
	Updated     bool            `json:"updated,omitempty"`
	Config      []byte          `json:"config"` // runtimev1.PodSandboxConfig, marshalled
}

// containerRecord is a container on disk; see podRecord.
type containerRecord struct {
	ID           ContainerID    `json:"id"`
	Pod          ID             `json:"pod"`
	Phase        containerPhase `json:"phase"`
	Fingerprint  string         `json:"fingerprint"`
	CreatedAt    time.Time      `json:"createdAt"`
	StartedAt    time.Time      `json:"startedAt,omitzero"`
	FinishedAt   time.Time      `json:"finishedAt,omitzero"`
	ExitCode     int32          `json:"exitCode,omitempty"`
	Reason       string         `json:"reason,omitempty"`
	Message      string         `json:"message,omitempty"`
	Told         bool           `json:"told,omitempty"` // a caller knows that the start succeeded; may be missing until it has exited
	ImageID      string         `json:"imageID"`
	ImageRef     string         `json:"imageRef"`
	ImageVolumes []string       `json:"imageVolumes,omitempty"`
	LogPath      string         `json:"logPath,omitempty"`
	StopSignal   string         `json:"stopSignal"`
	User         User           `json:"user"`
	Limits       Limits         `json:"limits"`
	Pending      *Limits        `json:"pending,omitempty"` // the change of an update that has not ended; 0 and nil: unchanged
	Config       []byte         `json:"config"`            // runtimev1.ContainerConfig, marshalled
}

// write records the pod. mu is held, or nobody else knows the pod.
func (p *pod) write() error {
	config, err := proto.Marshal(p.spec.Config())
	if err != nil {
		return fmt.Errorf("encode the config of pod %s: %w", p.id, err)
	}
	gives, err := json.Marshal(p.gives)
	if err != nil {
		return fmt.Errorf("encode the runtime handler of pod %s: %w", p.id, err)
	}
	r := podRecord{
		ID: p.id, BootID: p.bootID, Phase: p.phase, Fingerprint: p.fingerprint, Handler: p.handler, Gives: gives,
		CreatedAt: p.createdAt, Doomed: p.doomed, IPs: p.ips, Level: p.level, Config: config,
	}
	if err := p.updated.write(&r); err != nil {
		return fmt.Errorf("encode the resources of pod %s: %w", p.id, err)
	}
	return record.Write(filepath.Join(p.dir(), podRecordName), r)
}

// write records the container with the status st. The pod's mu is held, or nobody else knows the container.
func (c *container) write(st *ContainerStatus) error {
	config, err := proto.Marshal(st.Config())
	if err != nil {
		return fmt.Errorf("encode the config of container %s: %w", c.id, err)
	}
	return record.Write(c.recordPath(), containerRecord{
		ID: c.id, Pod: c.p.id, Phase: c.phase, Fingerprint: c.fingerprint, CreatedAt: st.CreatedAt,
		StartedAt: st.StartedAt, FinishedAt: st.FinishedAt, ExitCode: st.ExitCode, Reason: st.Reason, Message: st.Message, Told: c.told,
		ImageID: st.ImageID, ImageRef: st.ImageRef, ImageVolumes: st.ImageVolumes, LogPath: st.LogPath, StopSignal: st.StopSignal, User: st.User, Limits: st.Limits, Pending: c.pending, Config: config,
	})
}

// forget removes the container's record.
func (c *container) forget() error {
	if err := os.Remove(c.recordPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of container %s: %w", c.id, err)
	}
	return nil
}

// readPod makes a pod of its directory, without its containers.
func (s *Service) readPod(id ID) (*pod, error) {
	p := &pod{s: s, id: id}
	var r podRecord
	if err := record.Read(filepath.Join(p.dir(), podRecordName), &r); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("%w: record of pod %s in the directory of pod %s", record.ErrCorrupt, r.ID, id)
	}
	config := &runtimev1.PodSandboxConfig{}
	if err := proto.Unmarshal(r.Config, config); err != nil {
		return nil, fmt.Errorf("%w: config: %w", record.ErrCorrupt, err)
	}
	if err := checkPodConfig(config); err != nil {
		return nil, fmt.Errorf("%w: %w", record.ErrCorrupt, err)
	}
	spec, err := newPodSpec(config)
	if err != nil {
		return nil, err
	}
	if p.gives, err = s.storedHandler(r.Handler, r.Gives); err != nil {
		return nil, err
	}
	p.spec, p.handler, p.fingerprint, p.createdAt, p.bootID = spec, r.Handler, r.Fingerprint, r.CreatedAt, r.BootID
	p.phase, p.ips, p.doomed, p.known = r.Phase, r.IPs, r.Doomed, knownOfPod[r.Phase]
	if p.updated, err = readPodResources(&r); err != nil {
		return nil, fmt.Errorf("%w: resources: %w", record.ErrCorrupt, err)
	}
	if p.doomed && p.phase == podReady {
		p.phase = podStopping
	}
	if _, known := podNext[r.Phase]; !known {
		return nil, fmt.Errorf("%w: phase %q", record.ErrCorrupt, r.Phase)
	}
	if p.level = r.Level; p.level != "" {
		s.levels.Hold(p.level)
	}
	p.publish()
	return p, nil
}

// readContainer makes a container of its record.
func (p *pod) readContainer(id ContainerID) (*container, error) {
	c := &container{p: p, id: id, exited: make(chan struct{}), turns: newTurns()}
	var r containerRecord
	if err := record.Read(c.recordPath(), &r); err != nil {
		return nil, err
	}
	if r.ID != id || r.Pod != p.id {
		return nil, fmt.Errorf("%w: record of container %s of pod %s", record.ErrCorrupt, r.ID, r.Pod)
	}
	if _, known := containerNext[r.Phase]; !known {
		return nil, fmt.Errorf("%w: phase %q", record.ErrCorrupt, r.Phase)
	}
	config := &runtimev1.ContainerConfig{}
	if err := proto.Unmarshal(r.Config, config); err != nil {
		return nil, fmt.Errorf("%w: config: %w", record.ErrCorrupt, err)
	}
	if err := checkContainerConfig(config); err != nil {
		return nil, fmt.Errorf("%w: %w", record.ErrCorrupt, err)
	}
	if n := len(r.ImageVolumes); n > 0 && n != len(config.Mounts) {
		return nil, fmt.Errorf("%w: %d image volumes of %d mounts", record.ErrCorrupt, n, len(config.Mounts))
	}
	spec, err := newContainerSpec(config)
	if err != nil {
		return nil, err
	}
	spec.ImageID, spec.ImageRef, spec.ImageVolumes = r.ImageID, r.ImageRef, r.ImageVolumes
	spec.LogPath, spec.StopSignal, spec.User = r.LogPath, r.StopSignal, r.User
	c.phase, c.fingerprint, c.told, c.known = r.Phase, r.Fingerprint, r.Told, knownOfContainer[r.Phase]
	c.pending = r.Pending
	st := &ContainerStatus{ID: id, Pod: p.id, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message, Limits: r.Limits, containerSpec: spec}
	switch {
	case !r.FinishedAt.IsZero():
		st.State = ContainerExited
		close(c.exited)
	case c.phase == containerRunning:
		st.State = ContainerRunning
	default:
		st.State = ContainerCreated
	}
	c.status.Store(st)
	return c, nil
}

// containerIDs lists the containers that have a record in the pod's directory.
func (p *pod) containerIDs() ([]ContainerID, error) {
	entries, err := os.ReadDir(p.dir())
	if err != nil {
		return nil, fmt.Errorf("list the containers of pod %s: %w", p.id, err)
	}
	var ids []ContainerID
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), containerPrefix); ok && isID(id) {
			ids = append(ids, ContainerID(id))
		}
	}
	return ids, nil
}

// quarantine moves a record that cannot be read out of the way, to where nothing is ever deleted.
func (s *Service) quarantine(path string, cause error) {
	name := filepath.Base(filepath.Dir(path)) + "-" + filepath.Base(path)
	dir := filepath.Join(s.config.StateDir, "corrupt")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Rename(path, filepath.Join(dir, name))
	}
	if err == nil {
		var aside string
		aside, err = record.SetAside(filepath.Join(dir, name))
		s.log.Error("set a record aside that cannot be read", "record", path, "now", aside, "error", cause)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("cannot set a record aside", "record", path, "error", err)
	}
}
