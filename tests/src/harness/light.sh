set -e
root=$1; shift
if [ "$USER_NAMESPACE" ]; then mount -o bind "$root" "$root"; fi
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
if [ "$USER_NAMESPACE" ]; then
    mount -o rbind /sys "$root/sys"
    mount -o remount,bind,ro,nosuid,nodev,noexec "$root/sys"
else
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
fi
mount -t tmpfs -o nosuid,mode=755,size=64m dev "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount -o bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
if [ "$MASKED" ]; then
    for file in kcore keys timer_list; do
        if [ -e "$root/proc/$file" ]; then mount -o bind /dev/null "$root/proc/$file"; fi
    done
    for folder in bus fs irq sys sysrq-trigger; do
        if ! [ -e "$root/proc/$folder" ]; then continue; fi
        mount -o bind "$root/proc/$folder" "$root/proc/$folder"
        mount -o remount,bind,ro,nosuid,nodev,noexec "$root/proc/$folder"
    done
fi
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$(dirname "$root$2")"
        : >> "$root$2"
    fi
    mount -o bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
    shift 3
done
shift
cd "$root"
mkdir -p .outside
pivot_root . .outside
cd /
/bin/busybox umount -l /.outside
if [ "$MASKED" ]; then
    exec /bin/busybox unshare -U -m /bin/busybox sh -c '
        until read -r _ </proc/self/uid_map && read -r _ </proc/self/gid_map; do /bin/busybox sleep 0.01; done
        exec "$@"' mapped "$@"
fi
exec "$@"
