#!/usr/bin/env bash
# Machines for tests: each has its own network, mounts, processes and name (namespaces) and a real sshd; a bridge joins them.
#
#   unshare --user --map-root-user --net --mount --pid --uts --fork --mount-proc hosts.sh FOLDER SSHD NAME[=OPTIONS] ...
#
# OPTIONS are those of a tmpfs for the host's home; without them it is FOLDER/homes/NAME. The machine that runs this script is
# "here", 10.77.0.1. It says "ready" when all hosts let in, and ends when its standard input does: the kernel then ends all that
# it started.
set -euo pipefail
folder="$1" sshd="$2"
shift 2

mkdir -p "$folder"/{keys,home,homes,here/.ssh}
chmod 700 "$folder"/{keys,here/.ssh}
for key in host impostor user other; do ssh-keygen -q -t ed25519 -N '' -C '' -f "$folder/keys/$key"; done
cat >"$folder/sshd_config" <<EOF
Port 2222
HostKey $folder/keys/host
AuthorizedKeysFile $folder/keys/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
EOF
# The user of the hosts is not root, and sshd, which runs as that user, lets in no other: it needs no right of root's.
printf 'root:x:0:0::%s:/bin/sh\nruns:x:1000:1000::%s:/bin/sh\n' "$folder/here" "$folder/home" >"$folder/passwd"
printf '127.0.0.1 localhost\n10.77.0.1 here\n' >"$folder/hosts"
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/hosts" /etc/hosts
hostname here
ip link set lo up
ip link add bridge type bridge
ip addr add 10.77.0.1/24 dev bridge
ip link set bridge up

wait_for() { # COMMAND
  until "$@" 2>/dev/null; do
    ((SECONDS < 60)) || { cat "$folder"/sshd.*.txt <(echo "not within 60 s: $*") >&2 && exit 1; }
    sleep 0.05
  done
}
entered() { [[ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]]; }
listens() { (: <>"/dev/tcp/10.77.0.$1/2222"); }

known() { printf '[10.77.0.*]:2222 %s\n' "$(<"$folder/keys/$1.pub")"; }
known host >"$folder/here/.ssh/known_hosts"
known impostor >"$folder/here/.ssh/known_hosts_impostor"
# Of the first host: "stranger" comes with a key that it does not know, and "impostor" is how it would look with another key of
# its own.
cat >"$folder/here/.ssh/config" <<EOF
Host stranger impostor
  HostName 10.77.0.2
Host stranger
  IdentityFile $folder/keys/other
Host * !stranger
  IdentityFile $folder/keys/user
Host impostor
  UserKnownHostsFile $folder/here/.ssh/known_hosts_impostor
Host *
  Port 2222
  User runs
  IdentitiesOnly yes
EOF

host() { # NAME NUMBER OPTIONS: runs in the namespaces of the host
  hostname "$1"
  if [[ -n "$3" ]]; then mount -t tmpfs -o "$3" tmpfs "$folder/home"; else mount --bind "$folder/homes/$1" "$folder/home"; fi
  mount -t tmpfs tmpfs /dev/shm
  read -r _ # the end of its cable is there
  ip link set lo up
  ip addr add "10.77.0.$2/24" dev eth0
  ip link set eth0 up
  cd /
  exec unshare --user --map-user=1000 --map-group=1000 "$sshd" -D -E "$folder/sshd.$1.txt" -f "$folder/sshd_config"
}
export -f host
export folder sshd

number=2
for one in "$@"; do
  name="${one%%=*}" options=""
  [[ "$one" == *=* ]] && options="${one#*=}"
  mkdir -p "$folder/homes/$name"
  mkfifo "$folder/cable.$name"
  unshare --net --mount --pid --ipc --uts --fork --kill-child --mount-proc \
    bash -c 'host "$@"' host "$name" "$number" "$options" <"$folder/cable.$name" &
  exec {cable}>"$folder/cable.$name"
  wait_for entered $!
  ip link add "$name" type veth peer name eth0 netns $!
  ip link set "$name" master bridge
  ip link set "$name" up
  echo >&"$cable"
  exec {cable}>&-
  printf 'Host %s\n  HostName 10.77.0.%s\n' "$name" "$number" >>"$folder/here/.ssh/config"
  number=$((number + 1))
done
while ((--number > 1)); do wait_for listens "$number"; done
echo ready
read -r _ || true
