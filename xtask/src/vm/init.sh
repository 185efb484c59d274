#!/usr/bin/dash
# The guest's first process: makes the place, tries what the tests need, runs them, says one verdict, ends the machine.
# ttyS0 is the kernel's console. What is said on ttyS1 is read on the host: lines that begin with @vm, and shown ones with |.
export PATH=/usr/sbin:/usr/bin:/opt/busybox HOME=/root LANG=C.UTF-8 RUST_BACKTRACE=1 SWARMESH_BIN=/usr/bin/swarmesh
busybox=/usr/bin/busybox
$busybox mkdir -p /proc /sys /dev /run /tmp /root /var /opt/busybox
$busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1 3>/dev/ttyS1
$busybox --install -s /opt/busybox
stty -F /dev/ttyS1 raw -echo
mkdir -p /dev/pts /dev/shm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
ln -sf /run /var/run
mkdir -p /run/netns
hostname guest
ip link set lo up

say() { echo "@vm $*" >&3; }
show() { sed 's/^/| /' "$1" >&3; }
end() {
    say "$@"
    sync
    poweroff -f
    sleep 60
}
# What a command prints is shown as it comes: of a command that hangs, too.
shown() {
    {
        "$@" 2>&1 </dev/null 3>&-
        echo $? >/tmp/code
    } | while IFS= read -r line; do
        echo "| $line" >&3
    done
    read -r code </tmp/code
}
. /tests/settings
. /tests/environment

# However this ends, it ends.
(sleep "$BOOT_SECONDS"; end verdict failed "not done after $BOOT_SECONDS s") &
say up "$(uname -r)"

broken=0
smoke() {
    name=$1
    if sh -ec "$2" >/tmp/out 2>&1; then
        say smoke ok "$name"
    else
        show /tmp/out
        say smoke failed "$name"
        broken=$((broken + 1))
    fi
}
smoke modules 'modprobe -a nf_tables nf_conntrack_netlink veth vxlan bridge dummy'
smoke ip 'ip link add smoke type veth peer name mirror; ip addr add 10.255.0.1/24 dev smoke; ip -6 addr add fd00:255::1/64 dev mirror; ip link del smoke'
smoke namespaces 'ip netns add smoke; ip netns exec smoke ip link set lo up; ip netns exec smoke ping -c 1 127.0.0.1; ip netns del smoke'
smoke nft 'echo "table inet smoke { chain c { type nat hook output priority -110; ip daddr 10.255.0.1 dnat ip to 127.0.0.1; }; }" | nft -f -; nft list table inet smoke; nft delete table inet smoke'
smoke iptables 'iptables -N SMOKE; iptables -A SMOKE -m conntrack --ctstate DNAT -m comment --comment smoke -j ACCEPT; iptables -F SMOKE; iptables -X SMOKE'
smoke conntrack 'conntrack -L'
smoke ipvs 'modprobe -a ip_vs ip_vs_rr; ipvsadm -A -f 7 -s rr; ipvsadm -a -f 7 -r 127.0.0.2 -m; ipvsadm -L -n | grep -q 127.0.0.2; ipvsadm -C'

# The kernel patches its own text when the first chain comes to a hook and when the last one goes. An emulated processor that runs there
# at that moment may see the breakpoint later than the kernel knows of it ("Oops: int3" in NF_HOOK). With chains that stay, it is not patched.
nft add table inet stay
for hook in prerouting input forward output postrouting; do
    echo "add chain inet stay $hook { type filter hook $hook priority 0; }"
done | nft -f -
# By hand: one script of the caller's, and nothing else.
if [ -e /tests/script ]; then
    cd /tmp
    shown timeout -s KILL "$LAB_SECONDS" sh /tests/script
    say script "$code"
    [ $code = 0 ] && end verdict passed
    end verdict failed "the script ended with $code"
fi

passed=0
failed=0
# One process per test, as nextest has it on the host.
while read -r number plane name; do
    say start "$number"
    cd /tmp
    seconds=$TEST_SECONDS
    unset SWARMESH_TEST_PLANE
    if [ "$plane" != - ]; then
        seconds=$LAB_SECONDS
        export SWARMESH_TEST_PLANE="$plane"
    fi
    began=$(date +%s)
    shown timeout -s KILL "$seconds" "/tests/$number" --exact "$name" --nocapture
    took=$(($(date +%s) - began))
    # A test that was killed could not.
    ls /run/swarmesh-lab 2>/dev/null | while read -r lab; do
        swarmesh lab down --name "$lab" >/dev/null 2>&1 </dev/null 3>&-
    done
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        say end "$number" ok "$took"
    else
        failed=$((failed + 1))
        say end "$number" failed "$took" "$code"
    fi
done </tests/list

if [ $broken = 0 ] && [ $failed = 0 ]; then
    end verdict passed "$passed"
else
    end verdict failed "$broken of the smoke test, $failed of $((passed + failed)) tests"
fi
