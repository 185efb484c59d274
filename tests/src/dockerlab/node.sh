# Makes a node out of the namespaces that it is started in, and holds them.
# $1 host name  $2 cgroup  $3 file that says that the node is made, and by which process
set -e
echo $$ > "$2/cgroup.procs"
hostname "$1"
resolv=$(cat /etc/resolv.conf 2>/dev/null || true)
# Sockets, locks and namespaces of this node alone, at the places where an engine has them by default.
mount -t tmpfs -o mode=755 node /run
mkdir -p /run/docker /run/lock
# Where the resolver's configuration was below /run, the engine still has to find it.
if [ ! -e /etc/resolv.conf ]; then
    target=$(readlink -m /etc/resolv.conf)
    mkdir -p "$(dirname "$target")"
    printf '%s\n' "$resolv" > "$target"
fi
echo $$ > "$3.new"
mv "$3.new" "$3"
exec sleep infinity
