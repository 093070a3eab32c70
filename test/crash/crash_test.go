package crash

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const childDir = "CRASH_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := errors.Join(Watch(), writeSome(dir)); err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

// writeSome writes "safe" and syncs it and the directory, and then "lost", which it does not.
func writeSome(dir string) error {
	f, err := os.Create(filepath.Join(dir, "safe"))
	if err != nil {
		return err
	}
	_, err = f.WriteString("kept")
	d, openErr := os.Open(dir)
	if err = errors.Join(err, openErr, f.Sync(), d.Sync()); err != nil {
		return err
	}
	_, _ = os.Lstat(Marker("synced"))
	return os.WriteFile(filepath.Join(dir, "lost"), []byte("gone"), 0o600)
}

func TestStates(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), childDir+"="+dir), os.Stderr
	steps, err := Record(dir, cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range States(steps) {
		out := filepath.Join(t.TempDir(), "state")
		if err := errors.Join(os.Mkdir(out, 0o700), s.Write(out)); err != nil {
			t.Fatal(err)
		}
		safe, safeErr := os.ReadFile(filepath.Join(out, "safe"))
		lost, lostErr := os.ReadFile(filepath.Join(out, "lost"))
		if s.Step.Has("synced") && (safeErr != nil || string(safe) != "kept") {
			t.Errorf("%v: what was synced is %q, %v", &s, safe, safeErr)
		}
		if !s.Step.Has("synced") && lostErr == nil {
			t.Errorf("%v: what comes later is there", &s)
		}
		if s.Step.Has("synced") {
			seen[s.Kind+" "+string(lost)] = true
		}
		if s.At == len(steps)-1 && s.Kind == "killed" && string(lost) != "gone" {
			t.Errorf("after a kill the last file is %q", lost)
		}
	}
	for _, want := range []string{"killed gone", "written gone", "written ", "zeros \x00\x00\x00\x00"} {
		if !seen[want] {
			t.Errorf("there is no state %q among %v", want, seen)
		}
	}
}
