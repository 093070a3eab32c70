package cri

import (
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/stage"
)

// Config is what New needs. It is plain data, but for where to log and record.
type Config struct {
	Version      string // of criserver
	CgroupDriver runtimev1.CgroupDriver
	Features     Features
	Recorder     *stage.Recorder // nil: none
	Log          *slog.Logger
	Settings     // those that New begins with
}

// Settings are what can change while the server serves; see Configure.
type Settings struct {
	Handlers  []Handler       // must have one with the empty name, in the order in which Status shows them
	Effective json.RawMessage // the daemon's configuration, for verbose status; nil: none
	Slow      time.Duration   // RPCs that take longer are logged with their stages; 0: none is
}

// Handler is a runtime handler and what it can do on this kernel.
type Handler struct {
	Name              string
	RecursiveReadOnly bool
	UserNamespaces    bool // and idmapped mounts
}

// Features is what criserver implements, whatever the handler.
type Features struct {
	SupplementalGroupsPolicy  bool
	UserNamespacesHostNetwork bool
	MountOptions              bool
}

// Services is what Start needs.
type Services struct {
	Pods       PodService
	Containers ContainerService
	Resources  ResourceService
	Events     EventService
	Images     ImageService
	Streams    StreamService
	Network    NetworkService
	Stats      StatsService
}

// Server serves both CRI services.
type Server struct {
	config   Config
	settings atomic.Pointer[Settings]
	services atomic.Pointer[Services] // nil until Start
	ending   chan struct{}            // closed by EndStreams
	meter    meter

	listedPods       encodings[sandbox.PodStatus]
	listedContainers encodings[sandbox.ContainerStatus]
	statuses         encodedOnce[sandbox.ContainerStatus, *runtimev1.ContainerStatus]
}

// New returns a server that answers Version, Status and RuntimeConfig, and Unavailable to the rest.
func New(config Config) *Server {
	s := &Server{config: config, ending: make(chan struct{}), meter: newMeter()}
	s.listedPods.translate = func(pod *sandbox.PodStatus) proto.Message { return listedPod(pod) }
	s.listedContainers.translate = func(c *sandbox.ContainerStatus) proto.Message { return listedContainer(c) }
	s.statuses.translate = containerStatus
	s.Configure(config.Settings)
	return s
}

// Configure replaces the settings. RPCs that run may still go by the earlier ones.
func (s *Server) Configure(settings Settings) { s.settings.Store(&settings) }

// handlers are the names of the runtime handlers.
func (s *Server) handlers() []string {
	var names []string
	for _, h := range s.settings.Load().Handlers {
		names = append(names, h.Name)
	}
	return names
}

// Start lets the server answer everything. It is called once.
func (s *Server) Start(services Services) { s.services.Store(&services) }

// EndStreams ends what clients would listen to for ever, so that the gRPC server can be stopped. It is called once.
func (s *Server) EndStreams() { close(s.ending) }

// Message sizes. A client of the kubelet sends and takes 16 MiB; ExecSync may answer twice that to those that take more.
const (
	maxReceive = 16 << 20
	maxSend    = 40 << 20
)

// writeBuffer is what one write to a client takes: a list of a thousand containers is some 800 KiB, and every write costs a
// switch to the client. It is held only while something is written.
const writeBuffer = 256 << 10

// What a client may send before it hears that it was read. They are fixed because gRPC otherwise measures the way to the client with
// every request, by a ping that wakes both sides: pointless on a socket of the same machine.
const (
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// GRPC returns a gRPC server for the socket with both services.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.UnaryInterceptor(s.intercept),
		grpc.StreamInterceptor(s.interceptStream),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.WriteBufferSize(writeBuffer),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ForceServerCodecV2(newCodec()),
	)
	runtimev1.RegisterRuntimeServiceServer(g, &runtimeHandlers{Server: s})
	runtimev1.RegisterImageServiceServer(g, &imageHandlers{Server: s})
	return g
}

// runtimeHandlers are the RPCs of the RuntimeService.
type runtimeHandlers struct {
	runtimev1.UnimplementedRuntimeServiceServer
	*Server
}

// imageHandlers are the RPCs of the ImageService.
type imageHandlers struct {
	runtimev1.UnimplementedImageServiceServer
	*Server
}

// serving returns the services; the interceptor lets no RPC through to where they are needed before Start.
func (s *Server) serving() *Services { return s.services.Load() }
