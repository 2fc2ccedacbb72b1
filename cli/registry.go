package cli

import (
	"os"
	"path/filepath"

	"github.com/onggi/onggi/registry"
)

// registryOptions is how registries are spoken to: by the host's rules, with the user's logins.
func (a *app) registryOptions(plainHTTP []string) registry.Options {
	return registry.Options{
		PlainHTTP: plainHTTP, UserAgent: "onggi/" + Version, Offline: a.offline,
		Rules: registry.NewRules(ruleFiles()), Credentials: registry.FileCredentials(credentialFiles()...),
	}
}

// ruleFiles are the places where a host says what it knows of registries. ONGGI_REGISTRIES names another directory, in
// place of all of them, which may hold certs.d and registries.conf.
func ruleFiles() registry.RuleFiles {
	if dir := os.Getenv("ONGGI_REGISTRIES"); dir != "" {
		return registry.RuleFiles{HostsDirs: []string{filepath.Join(dir, "certs.d")}, RegistriesConf: []string{filepath.Join(dir, "registries.conf")}}
	}
	f := registry.RuleFiles{
		HostsDirs: []string{"/etc/onggi/certs.d", "/etc/containerd/certs.d"}, CertDirs: []string{"/etc/docker/certs.d", "/etc/containers/certs.d"},
		RegistriesConf: []string{"/etc/containers/registries.conf"},
	}
	if own := os.Getenv("CONTAINERS_REGISTRIES_CONF"); own != "" { // as containers-registries.conf(5) has it
		f.RegistriesConf = []string{own}
	} else if home, err := os.UserHomeDir(); err == nil {
		f.RegistriesConf = append(f.RegistriesConf, filepath.Join(home, ".config/containers/registries.conf"))
	}
	return f
}

// credentialFiles are the files that hold logins, the first to be asked first: docker's, then podman's.
func credentialFiles() []string {
	var files []string
	if f := dockerConfigFile(); f != "" {
		files = append(files, f)
	}
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return append(files, f)
	}
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		files = append(files, filepath.Join(run, "containers/auth.json"))
	}
	if os.Geteuid() == 0 {
		files = append(files, "/run/containers/0/auth.json")
	}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".config/containers/auth.json"))
	}
	return files
}

// dockerConfigFile is where docker keeps what it is logged in with, or "".
func dockerConfigFile() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker/config.json")
}
