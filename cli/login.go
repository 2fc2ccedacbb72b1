package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const dockerHub = "docker.io"

// registryName reads a registry as docker's users write it, also as an address.
func registryName(args []string) (string, error) {
	if len(args) == 0 {
		return dockerHub, nil
	}
	name := strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://")
	name = strings.TrimSuffix(name, "/")
	for _, s := range []string{"/v1", "/v2"} {
		name = strings.TrimSuffix(name, s)
	}
	if name == "index.docker.io" || name == "registry-1.docker.io" {
		name = dockerHub
	}
	if name == "" || strings.ContainsAny(name, "/ ?#@\x00") {
		return "", &errdefs.Error{
			Op: "use", What: fmt.Sprintf("%q", args[0]), Kind: errdefs.InvalidArgument,
			Why: "it is no registry: host[:port] is meant", Fix: "for example: onggi login registry.example.com",
		}
	}
	return name, nil
}

func buildLogin(a *app, c *cobra.Command) {
	var (
		user, password string
		stdin          bool
		plainHTTP      []string
	)
	c.Use = "login [FLAGS] [REGISTRY]"
	c.Long = `Ask a registry whether it takes a user name and a password, and keep them where docker keeps them: in
$DOCKER_CONFIG/config.json (~/.docker), or with the credential helper that it names. A registry that gives an identity token has
that kept in place of the password. Without a registry docker.io is meant.`
	c.Example = `  onggi login -u jar registry.example.com
  pass show registry | onggi login -u jar --password-stdin registry.example.com`
	f := c.Flags()
	f.StringVarP(&user, "username", "u", "", "`name` of the user")
	f.StringVarP(&password, "password", "p", "", "`password`; others on this host can see it while the command runs")
	f.BoolVar(&stdin, "password-stdin", false, "read the password from stdin")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(0, 1, "at most a registry")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := registryName(args)
		if err != nil {
			return err
		}
		file := dockerConfigFile()
		if file == "" {
			return &errdefs.Error{Op: "log in at", What: name, Kind: errdefs.InvalidArgument, Why: "neither DOCKER_CONFIG nor HOME says where logins are kept", Fix: "set HOME"}
		}
		given := c.Flags().Changed("password")
		switch {
		case given && stdin:
			return badFlag("--password-stdin", "true", "--password was given, too", "give one of them")
		case given && password == "":
			return reading("--password", "", errorText("the value is empty"))
		case stdin && user == "":
			return badFlag("--password-stdin", "true", "the user's name is missing", "give it with -u")
		case given:
			a.warn("--password can be seen by others on this host: use --password-stdin")
		}
		if stdin {
			b := make([]byte, 64<<10) // an identity token may be long
			n, err := io.ReadFull(a.in, b)
			if b = b[:n]; err != io.EOF && err != io.ErrUnexpectedEOF {
				return &errdefs.Error{Op: "read", What: "the password", Kind: errdefs.KindOf(err), Err: err}
			}
			if password = strings.TrimRight(string(b), "\r\n"); password == "" {
				return badFlag("--password-stdin", "true", "stdin holds no password", "feed it: onggi login ... --password-stdin < FILE")
			}
		}
		if user == "" || password == "" {
			if user, password, err = a.askLogin(name, user, password); err != nil {
				return err
			}
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		cred, err := registry.LogIn(ctx, a.registryOptions(plainHTTP), name, registry.Credential{Username: user, Password: password})
		if err != nil {
			return err
		}
		helper, err := registry.SaveCredential(ctx, file, name, cred)
		if err != nil {
			return err
		}
		if helper == "" && cred.IdentityToken == "" {
			a.warn("the password is kept unencrypted in " + file + "; a credential helper (credsStore) keeps it better")
		}
		return a.print("Login Succeeded\n")
	}
}

// askLogin asks on the terminal for what is missing.
func (a *app) askLogin(name, user, password string) (string, string, error) {
	if !term.IsTerminal(int(a.in.Fd())) {
		return "", "", &errdefs.Error{
			Op: "log in at", What: name, Kind: errdefs.InvalidArgument, Why: "the user's name or the password is missing, and stdin is no terminal to ask on",
			Fix: "onggi login -u USER --password-stdin " + name,
		}
	}
	if user == "" {
		fmt.Fprint(a.err, "Username: ")
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if user = strings.TrimSpace(line); user == "" {
			return "", "", &errdefs.Error{Op: "log in at", What: name, Kind: errdefs.InvalidArgument, Why: "there is no name", Err: err}
		}
	}
	if password == "" {
		fmt.Fprint(a.err, "Password: ")
		b, err := term.ReadPassword(int(a.in.Fd()))
		fmt.Fprintln(a.err)
		if password = string(b); password == "" {
			return "", "", &errdefs.Error{Op: "log in at", What: name, Kind: errdefs.InvalidArgument, Why: "there is no password", Err: err}
		}
	}
	return user, password, nil
}

func buildLogout(a *app, c *cobra.Command) {
	c.Use = "logout [REGISTRY]"
	c.Long = `Remove a registry's login from docker's config.json, and from the credential helper that it names. Without a registry
docker.io is meant.`
	c.Example = `  onggi logout registry.example.com`
	c.Args = takes(0, 1, "at most a registry")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := registryName(args)
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		found, err := registry.EraseCredential(ctx, dockerConfigFile(), name)
		if err != nil {
			return err
		}
		if !found {
			return a.print("Not logged in to " + name + "\n")
		}
		return a.print("Removing login credentials for " + name + "\n")
	}
}
