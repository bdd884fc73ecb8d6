"""The life of an ENI through alibabacloud-ecs20140526 (ACS3-HMAC-SHA256); prints what it saw, one JSON value a line."""

import json
import sys
import urllib.request

from alibabacloud_ecs20140526 import models as ecs
from alibabacloud_ecs20140526.client import Client
from alibabacloud_tea_openapi.models import Config

API, METADATA = sys.argv[1:3]
REGION = "cn-hangzhou"


def connect(key, secret, token=None):
    return Client(
        Config(
            access_key_id=key,
            access_key_secret=secret,
            security_token=token,
            region_id=REGION,
            endpoint=API,
            protocol="http",
        )
    )


def say(name, value):
    print(json.dumps([name, value]), flush=True)


def refused(client):
    try:
        client.describe_network_interfaces(ecs.DescribeNetworkInterfacesRequest(region_id=REGION))
    except Exception as e:
        return [getattr(e, "status_code", None) or e.data["statusCode"], e.code]
    return None


def sts_client():
    base = METADATA + "/latest/meta-data/ram/security-credentials/"
    role = urllib.request.urlopen(base).read().decode()
    c = json.load(urllib.request.urlopen(base + role))
    return connect(c["AccessKeyId"], c["AccessKeySecret"], c["SecurityToken"])


client = connect("testid", "testsecret")


def describe(eni, client=client):
    request = ecs.DescribeNetworkInterfacesRequest(region_id=REGION, network_interface_id=[eni])
    found = client.describe_network_interfaces(request).body.network_interface_sets.network_interface_set
    return [
        [
            e.status,
            e.instance_id,
            [[p.private_ip_address, p.primary] for p in e.private_ip_sets.private_ip_set],
            e.description,
            [[t.tag_key, t.tag_value] for t in e.tags.tag],
        ]
        for e in found
    ]


def create():
    request = ecs.CreateNetworkInterfaceRequest(
        region_id=REGION,
        v_switch_id="vsw-pod",
        security_group_ids=["sg-sim"],
        secondary_private_ip_address_count=1,
        description="节点 a ~*+/=&%",
        tag=[ecs.CreateNetworkInterfaceRequestTag(key="creator", value="terway")],
        client_token="tok ~*+/=&%",
    )
    return client.create_network_interface(request).body.network_interface_id


eni = create()
place = {"region_id": REGION, "network_interface_id": eni}
say("again", create() == eni)
say("created", describe(eni))

client.attach_network_interface(ecs.AttachNetworkInterfaceRequest(instance_id="i-node", **place))
say("attached", describe(eni))

request = ecs.AssignPrivateIpAddressesRequest(secondary_private_ip_address_count=2, **place)
answer = client.assign_private_ip_addresses(request).body
assigned = answer.assigned_private_ip_addresses_set.private_ip_set.private_ip_address
say("assigned", assigned)

client.unassign_private_ip_addresses(
    ecs.UnassignPrivateIpAddressesRequest(private_ip_address=[assigned[0]], **place)
)
say("unassigned", describe(eni, client=sts_client()))

request = ecs.DescribeInstancesRequest(region_id=REGION, instance_ids=json.dumps(["i-node"]))
say("instance", [i.instance_type for i in client.describe_instances(request).body.instances.instance])

request = ecs.DescribeInstanceTypesRequest(instance_types=["ecs.sim.large"])
say("type", [t.eni_quantity for t in client.describe_instance_types(request).body.instance_types.instance_type])

client.detach_network_interface(ecs.DetachNetworkInterfaceRequest(instance_id="i-node", **place))
say("detached", describe(eni)[0][:2])

client.delete_network_interface(ecs.DeleteNetworkInterfaceRequest(**place))
say("deleted", describe(eni))

say("wrong secret", refused(connect("testid", "wrong")))
say("wrong key", refused(connect("nobody", "testsecret")))
