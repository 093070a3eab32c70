package layer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestManyLeftovers: what many containers have left behind at a power loss is deleted by a few threads, which a process keeps.
func TestManyLeftovers(t *testing.T) {
	root := t.TempDir()
	for i := range 300 {
		dir := filepath.Join(root, "trash", fmt.Sprint(i), upperDir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for j := range 8 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(j)), make([]byte, 64<<10), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := threads(t)
	s := open(t, Config{Root: root})
	s.cleanup.Wait()
	if more := threads(t) - before; more > 30 {
		t.Errorf("the process has %d threads more", more)
	}
	left(t, s)
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
