package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A policy that is not right is a fault of the configuration, at a start as at a reload.
func TestPolicyIsPartOfTheConfiguration(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.json")
	load := func(text string) (Config, error) {
		t.Helper()
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, err := loadWith(t, "[images.verify]\npolicy = '"+policy+"'\nbin_dir = '/'\n")
		return c, err
	}
	c, err := load(`{"default":[{"type":"reject"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Verify{Policy: policy, Imports: "verify", BinDir: "/", Verifiers: 10, Timeout: Duration(10 * time.Second)}); !cmp.Equal(want, c.Images.Verify) {
		t.Errorf("got %+v", c.Images.Verify)
	}
	v, err := c.Images.Verify.verification(slog.Default())
	if err != nil || v.Policy == nil || v.Verifiers == nil || v.AnyImport || v.Verifiers.Dir != "/" || v.Verifiers.Max != 10 || v.Verifiers.Timeout != 10*time.Second {
		t.Errorf("got %+v, %v", v, err)
	}
	if v, err := defaultVerify().verification(slog.Default()); err != nil || v.Policy != nil || v.Verifiers != nil {
		t.Errorf("the default is %+v, %v", v, err)
	}
	_, err = load(`{"default":[{"type":"signedBy","keyPath":"/x"}]}`)
	if err == nil || !strings.Contains(err.Error(), `images.verify.policy: policy `+policy+`: default: requirement 1: type "signedBy": GPG`) {
		t.Errorf("got %v", err)
	}
	c.Images.Verify.Imports, c.Images.Verify.Policy = "allow", ""
	if v, err := c.Images.Verify.verification(slog.Default()); err != nil || !v.AnyImport {
		t.Errorf("imports are allowed: %+v, %v", v, err)
	}
	if _, _, err := loadWith(t, "[images.verify]\nimports = 'never'\n"); err == nil || !strings.Contains(err.Error(), `images.verify.imports: "never" is not one of verify, allow`) {
		t.Errorf("got %v", err)
	}
}
