package main

import ocispec "github.com/opencontainers/image-spec/specs-go/v1"

// A recipe is an image: its layers, lowest first, its configuration, and what
// is measured with it.
type recipe struct {
	name   string
	layers []string // of layerRecipes
	config ocispec.ImageConfig
	ready  string
	task   []string // instead of its command
}

// A layerRecipe is what is done in a root file system to make one layer.
type layerRecipe struct {
	packages []string
	script   string // for sh, after the packages are there
}

// searchPath is every image's.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The images are those of HelloBench (Harter and others, "Slacker", FAST '16)
// that packages can make, with its tasks; net, scm and toolchain are the stages that
// the official images of languages are built on.
var recipes = []*recipe{
	{name: "debian", layers: []string{"base"}, config: ocispec.ImageConfig{Cmd: []string{"bash"}},
		ready: "line:hello", task: []string{"/bin/echo", "hello"}},
	{name: "redis", layers: []string{"base", "redis", "redisconf"},
		config: ocispec.ImageConfig{WorkingDir: "/data", Cmd: []string{"redis-server", "/etc/redis/redis.conf"}},
		ready:  "line:eady to accept connections"},
	{name: "nginx", layers: []string{"base", "nginx", "nginxconf"},
		config: ocispec.ImageConfig{Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}},
		ready:  "tcp:80"},
	{name: "node", layers: []string{"base", "net", "nodejs", "nodeapp"},
		config: ocispec.ImageConfig{WorkingDir: "/app", Env: []string{"NODE_ENV=production"}, Cmd: []string{"/usr/bin/node", "server.js"}, User: "1000:1000"},
		ready:  "line:listening"},
	{name: "postgres", layers: []string{"base", "postgres", "postgresconf"},
		config: ocispec.ImageConfig{Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"postgres"}, User: "postgres",
			Env: []string{"LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data", "PG_MAJOR=15"}},
		ready: "line:ready to accept connections"},
	{name: "python", layers: []string{"base", "net", "scm", "toolchain", "python", "numpy"},
		config: ocispec.ImageConfig{Env: []string{"LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"}, Cmd: []string{"python3"}},
		ready:  "line:numpy 3.0", task: []string{"python3", "-c", "import numpy; print(\"numpy\", numpy.ones(3).sum())"}},
	{name: "ruby", layers: []string{"base", "net", "scm", "toolchain", "ruby"},
		config: ocispec.ImageConfig{Env: []string{"LANG=C.UTF-8"}, Cmd: []string{"irb"}},
		ready:  "line:hello", task: []string{"ruby", "-e", "require \"json\"; require \"set\"; puts \"hello\""}},
}

// layerRecipes are the layers by name; base is made by mmdebstrap.
var layerRecipes = map[string]layerRecipe{
	"base": {},
	"net":  {packages: []string{"ca-certificates", "curl", "gnupg", "netbase"}},
	"scm":  {packages: []string{"git", "mercurial", "openssh-client", "procps"}},
	"toolchain": {packages: []string{"autoconf", "automake", "bzip2", "dpkg-dev", "file", "g++", "gcc", "libbz2-dev", "libc6-dev", "libcurl4-openssl-dev",
		"libdb-dev", "libffi-dev", "libgdbm-dev", "libglib2.0-dev", "libgmp-dev", "libjpeg-dev", "liblzma-dev", "libncurses-dev", "libpng-dev",
		"libpq-dev", "libreadline-dev", "libsqlite3-dev", "libssl-dev", "libtool", "libxml2-dev", "libxslt-dev", "libyaml-dev", "make", "patch",
		"unzip", "xz-utils", "zlib1g-dev"}},
	"redis": {packages: []string{"redis-server"}},
	"redisconf": {script: `mkdir -p /data && chown redis:redis /data
sed -i -e 's/^daemonize yes/daemonize no/' -e 's/^supervised .*/supervised no/' -e 's,^logfile .*,logfile "",' \
	-e 's,^dir .*,dir /data,' -e 's/^bind .*/bind 0.0.0.0/' /etc/redis/redis.conf`},
	"nginx": {packages: []string{"nginx"}},
	"nginxconf": {script: `ln -sf /dev/stdout /var/log/nginx/access.log
ln -sf /dev/stderr /var/log/nginx/error.log
printf '#!/bin/sh\nset -e\nexec "$@"\n' >/docker-entrypoint.sh
chmod 755 /docker-entrypoint.sh`},
	"nodejs": {packages: []string{"nodejs", "node-express"}},
	"nodeapp": {script: `mkdir /app
cat >/app/server.js <<'END'
const app = require('express')()
app.get('/', (req, res) => res.send('hello\n'))
app.listen(3000, () => console.log('listening on 3000'))
END`},
	// Without a cluster: the entrypoint makes it, as in the official image.
	"postgres": {packages: []string{"postgresql-15", "postgresql-contrib-15"}},
	"postgresconf": {script: `rm -rf /var/lib/postgresql/15 /etc/postgresql/15
mkdir -p /var/lib/postgresql/data && chown postgres:postgres /var/lib/postgresql/data && chmod 700 /var/lib/postgresql/data
cat >/docker-entrypoint.sh <<'END'
#!/bin/bash
set -e
bin=/usr/lib/postgresql/$PG_MAJOR/bin
[ -s "$PGDATA/PG_VERSION" ] || "$bin/initdb" -A trust -D "$PGDATA"
exec "$bin/$1" -D "$PGDATA" -k /tmp "${@:2}"
END
chmod 755 /docker-entrypoint.sh`},
	"python": {packages: []string{"python3", "python3-dev", "python3-pip", "python3-venv"}},
	"numpy":  {packages: []string{"python3-numpy"}},
	"ruby":   {packages: []string{"ruby-full"}},
}
