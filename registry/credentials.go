package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
)

const (
	maxConfig     = 1 << 20
	helperTimeout = 20 * time.Second
)

// dockerConfig is the part of ~/.docker/config.json that concerns logging in.
type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth"` // base64 of user:password
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// DockerCredentials returns a function for Options.Credentials that reads config.json in docker's configuration
// directory ($DOCKER_CONFIG, or ~/.docker; "" is none), and asks the credential helper that it names for the registry.
// Nothing is written. Without an entry the result is the zero Credential.
func DockerCredentials(dir string) func(ctx context.Context, repository string) (Credential, error) {
	if dir == "" {
		return FileCredentials() // not the working directory's config.json
	}
	return FileCredentials(filepath.Join(dir, "config.json"))
}

// FileCredentials is DockerCredentials for files of that form, docker's config.json and podman's auth.json: the first
// one that has an entry for the repository decides. An entry may be for a registry, or, as podman has it, for a
// namespace or a repository in it; the longest one counts.
func FileCredentials(files ...string) func(ctx context.Context, repository string) (Credential, error) {
	return func(ctx context.Context, repository string) (Credential, error) {
		for _, f := range files {
			if cred, err := readDockerConfig(ctx, f, repository); err != nil || !cred.zero() {
				return cred, err
			}
		}
		return Credential{}, nil
	}
}

func readDockerConfig(ctx context.Context, path, repository string) (Credential, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return Credential{}, nil
	}
	if err != nil {
		return Credential{}, err
	}
	defer f.Close()
	b, err := readAtMost(f, maxConfig)
	if err != nil {
		return Credential{}, err
	}
	var cfg dockerConfig
	if err := json.Unmarshal(b, &cfg); err != nil {
		return Credential{}, &errdefs.Error{
			Op: "read", What: path, Kind: errdefs.InvalidArgument,
			Why: "it is not a docker configuration", Fix: "correct or remove it", Err: err,
		}
	}
	return cfg.lookUp(ctx, path, repository)
}

// configKeys are the names under which docker files a registry.
func configKeys(registry string) []string {
	if registry == "docker.io" {
		return []string{"https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"}
	}
	return []string{
		registry, "https://" + registry, "http://" + registry, "https://" + registry + "/v1/",
		"https://" + registry + "/v2/",
	}
}

func (cfg *dockerConfig) lookUp(ctx context.Context, path, repository string) (Credential, error) {
	registry, _, _ := strings.Cut(repository, "/")
	keys := configKeys(registry)
	for _, k := range keys {
		if h := cfg.CredHelpers[k]; h != "" {
			return askHelper(ctx, h, k)
		}
	}
	if cfg.CredsStore != "" {
		if cred, err := askHelper(ctx, cfg.CredsStore, keys[0]); err != nil || !cred.zero() {
			return cred, err
		}
	}
	for ns := repository; strings.Contains(ns, "/"); ns = ns[:strings.LastIndexByte(ns, '/')] { // the longest first
		keys = slices.Insert(keys, len(keys)-len(configKeys(registry)), ns)
	}
	for _, k := range keys {
		a, ok := cfg.Auths[k]
		if !ok {
			continue
		}
		cred := Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			user, pass, found := strings.Cut(string(raw), ":")
			if err != nil || !found {
				return Credential{}, &errdefs.Error{
					Op: "read", What: path, Kind: errdefs.InvalidArgument,
					Why: fmt.Sprintf("the entry of %s is not base64 of user:password", k), Fix: "log in again with: onggi login " + registry,
				}
			}
			cred.Username, cred.Password = user, strings.TrimRight(pass, "\x00")
		}
		if !cred.zero() {
			return cred, nil
		}
	}
	return Credential{}, nil
}

// askHelper runs docker-credential-NAME get (docker's credential helper protocol).
func askHelper(ctx context.Context, name, key string) (Credential, error) {
	out, err := runHelper(ctx, name, "get", key)
	if err != nil || out == nil {
		return Credential{}, err
	}
	var got struct{ Username, Secret string }
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&got); err != nil {
		return Credential{}, &errdefs.Error{
			Op: "ask the credential helper", What: "docker-credential-" + name, Kind: errdefs.Corrupt,
			Why: "its answer is no JSON",
		}
	}
	if got.Username == "<token>" {
		return Credential{IdentityToken: got.Secret}, nil
	}
	return Credential{Username: got.Username, Password: got.Secret}, nil
}

// runHelper runs docker-credential-NAME ACTION; nil when it has no such entry. The program is named by the user's own
// configuration and found in the user's own PATH; nothing of an image or a registry reaches its arguments.
func runHelper(ctx context.Context, name, action, stdin string) ([]byte, error) {
	if strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return nil, &errdefs.Error{
			Op: "ask the credential helper", What: fmt.Sprintf("%q", name), Kind: errdefs.InvalidArgument,
			Why: "a helper is named without a path",
		}
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, action)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second // a child of the helper may hold the pipe
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		said := string(out)
		if errors.As(err, &exit) {
			said += string(exit.Stderr)
		}
		if exit != nil && strings.Contains(said, "not found") {
			return nil, nil // "credentials not found in native keychain"
		}
		return nil, &errdefs.Error{
			Op: "ask the credential helper", What: "docker-credential-" + name, Kind: errdefs.Unavailable,
			Why: clean(said), Fix: "check it, or remove it from docker's config.json", Err: err,
		}
	}
	if out == nil {
		out = []byte{}
	}
	return out, nil
}
