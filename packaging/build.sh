#!/bin/sh
# Makes a DEB and an RPM out of the static binary:
#
#   packaging/build.sh ARCH BINARY OUT      ARCH: x86_64 or aarch64
#
# The same binary, tree and commit give the same packages, bit by bit: times are the commit's, or SOURCE_DATE_EPOCH. RELEASE=2
# tells a second package of one version from the first. TERWAY_SPEAKS names a binary that can be run here, where BINARY cannot.
set -eu
cd "$(dirname "$0")/.."
arch=$1 binary=$2 out=$3
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
release=${RELEASE:-1}
export LC_ALL=C SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
case $arch in
x86_64) deb_arch=amd64 ;;
aarch64) deb_arch=arm64 ;;
*) echo "no packages for $arch: say x86_64 or aarch64" >&2 && exit 2 ;;
esac
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The files as they shall lie on the node.
stage=$work/stage
cp -R packaging/root "$stage"
mkdir -p "$stage/usr/bin" "$stage/opt/cni/bin" "$stage/etc/cni/net.d" "$stage/var/lib/terway" "$stage/usr/share/man/man8"
install -m 755 "$binary" "$stage/usr/bin/terway"
ln -s terway "$stage/usr/bin/terwayd"
ln -s terway "$stage/usr/bin/terway-cli"
ln -s ../../../usr/bin/terway "$stage/opt/cni/bin/terway"
cp systemd/*.service "$stage/usr/lib/systemd/system/"
cp cni-conf/10-terway.conflist "$stage/etc/eni/"
mkdir -p "$stage/usr/share/doc/terway"
cp -R docs "$stage/usr/share/doc/terway/"
for document in README.md CHANGELOG.md SECURITY.md; do
    # What they link to lies beside them there, or is for those who have the sources.
    sed -E 's#\]\(cni-conf/#](#g; s#\[([^]]*)\]\((src/|tests/|bpf/|CONTRIBUTING)[^)]*\)#\1#g' "$document" >"$stage/usr/share/doc/terway/$document"
done
cp cni-conf/*.yaml cni-conf/*.json packaging/monitoring/* "$stage/usr/share/doc/terway/"
cp LICENSE "$stage/usr/share/doc/terway/copyright"

# Man pages out of what the programs say of themselves.
mkdir "$work/bin"
for name in terwayd terway-cli; do
    ln -s "$(realpath "${TERWAY_SPEAKS:-$binary}")" "$work/bin/$name"
    cp "packaging/man/$name.h2m" "$work/"
    [ $name != terway-cli ] || packaging/man/commands.sh "$work/bin/$name" >>"$work/$name.h2m"
    help2man --section=8 --no-info --no-discard-stderr --version-string="$version" --source=Terway --manual="Terway" \
        --include="$work/$name.h2m" "$work/bin/$name" >"$stage/usr/share/man/man8/$name.8"
done
cp packaging/man/terway.8 "$stage/usr/share/man/man8/"
gzip -9n "$stage"/usr/share/man/man8/*

find "$stage" -type d -exec chmod 755 {} +
find "$stage" -type f ! -perm -100 -exec chmod 644 {} +
chmod 600 "$stage/etc/eni/eni.json"
chmod 700 "$stage/var/lib/terway"
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"

# rpm keeps the stage as it is; dpkg-deb wants its control files in it.
rpmbuild -bb --target "$arch" --define "_topdir $work/rpm" --define "_rpmdir $work/rpms" --define "_rpmfilename %{ARCH}.rpm" \
    --define "stage $stage" --define "version $version" --define "release $release" packaging/rpm/terway.spec >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mv "$work/rpms/$arch.rpm" "$out/terway-$version-$release.$arch.rpm"

control=$stage/DEBIAN
mkdir "$control"
size=$(du -k -s --apparent-size --exclude=DEBIAN "$stage" | cut -f 1)
sed "s/@VERSION@/$version-$release/; s/@ARCH@/$deb_arch/; s/@SIZE@/$size/" packaging/deb/control >"$control/control"
(cd "$stage" && find etc/eni -type f | sort | sed 's|^|/|') >"$control/conffiles"
(cd "$stage" && find . -type f ! -path './DEBIAN/*' ! -path './etc/eni/*' | sed 's|^\./||' | sort | xargs md5sum) >"$control/md5sums"
for script in postinst prerm postrm; do
    sed -e '/^@PURGE@$/{r packaging/purge
d}' "packaging/deb/$script" >"$control/$script"
    chmod 755 "$control/$script"
done
find "$stage" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$stage" "$out/terway_$version-${release}_$deb_arch.deb" >/dev/null
