package cri

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
)

func (h *imageHandlers) PullImage(ctx context.Context, r *runtimev1.PullImageRequest) (*runtimev1.PullImageResponse, error) {
	request, err := pullRequest(r, h.handlers())
	if err != nil {
		return nil, err
	}
	id, err := h.serving().Images.Pull(ctx, request)
	return &runtimev1.PullImageResponse{ImageRef: id}, err
}

// ImageStatus answers without an image where there is none. The beginning of several ids is an error, since clients pull what is said to
// be absent.
func (h *imageHandlers) ImageStatus(_ context.Context, r *runtimev1.ImageStatusRequest) (*runtimev1.ImageStatusResponse, error) {
	if err := validateImage(r.GetImage(), h.handlers()); err != nil {
		return nil, err
	}
	img, err := h.serving().Images.Find(r.GetImage().GetImage())
	if errors.Is(err, imageservice.ErrNotFound) {
		return &runtimev1.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	response := &runtimev1.ImageStatusResponse{Image: image(img)}
	if r.GetVerbose() {
		response.Info, err = inspectImage(img)
	}
	return response, err
}

func (h *imageHandlers) RemoveImage(ctx context.Context, r *runtimev1.RemoveImageRequest) (*runtimev1.RemoveImageResponse, error) {
	if err := validateImage(r.GetImage(), h.handlers()); err != nil {
		return nil, err
	}
	return &runtimev1.RemoveImageResponse{}, h.serving().Images.Remove(ctx, r.GetImage().GetImage())
}

func (h *imageHandlers) ImageFsInfo(context.Context, *runtimev1.ImageFsInfoRequest) (*runtimev1.ImageFsInfoResponse, error) {
	usage := h.serving().Images.Usage()
	fs := []*runtimev1.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimev1.FilesystemIdentifier{Mountpoint: usage.Mountpoint},
		UsedBytes:  &runtimev1.UInt64Value{Value: usage.Bytes},
		InodesUsed: &runtimev1.UInt64Value{Value: usage.Inodes},
	}}
	return &runtimev1.ImageFsInfoResponse{ImageFilesystems: fs, ContainerFilesystems: fs}, nil
}

func image(img *imageservice.Image) *runtimev1.Image {
	uid, username := imageUser(img.User)
	return &runtimev1.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned,
		Uid: uid, Username: username, Spec: &runtimev1.ImageSpec{Image: img.ID},
	}
}

// imageUser is the user of an image's config as CRI wants it: a number or a name, without the group.
func imageUser(user string) (*runtimev1.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil {
		return &runtimev1.Int64Value{Value: int64(uid)}, ""
	}
	return nil, user
}
